#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

namespace moecod {

/// Work that a device does, recorded once: a CUDA graph.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  /// Puts the work on the current stream once more, with the tensors that it was recorded with. Synchronises: never.
  virtual void replay() = 0;
};

/// Records graphs; cuda/graph_recorder.hpp has the one for CUDA.
class GraphRecorder {
 public:
  /// A name for memory that graphs may share.
  using Pool = std::pair<uint64_t, uint64_t>;

  virtual ~GraphRecorder() = default;
  /// Whether work on the current stream can be recorded.
  virtual bool ready() const = 0;
  virtual Pool new_pool() = 0;
  /// Calls `work`, whose device operations are recorded instead of done. What it allocates on the device comes from the
  /// pool, and what it lets go another recording of the pool may use.
  /// Errors: what `work` throws, which includes waiting for the device; nothing is recorded then.
  virtual std::unique_ptr<DeviceGraph> record(Pool pool, const std::function<void()>& work) = 0;
};

}  // namespace moecod
