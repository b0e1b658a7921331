#pragma once
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include <functional>
#include <memory>

#include "moecod/core/device_graph.hpp"

namespace moecod::cuda {

/// Records CUDA graphs, by LibTorch's at::cuda::CUDAGraph. Needs the CUDA toolkit's headers.
///
/// The default stream cannot be recorded: run the program on another (c10::cuda::CUDAStreamGuard), from before the model's
/// first backward pass, so that its gradients are accumulated there. Other threads may work on other streams meanwhile.
class GraphRecorder final : public moecod::GraphRecorder {
 public:
  bool ready() const override { return c10::cuda::getCurrentCUDAStream() != c10::cuda::getDefaultCUDAStream(); }
  Pool new_pool() override { return at::cuda::graph_pool_handle(); }

  std::unique_ptr<DeviceGraph> record(Pool pool, const std::function<void()>& work) override {
    auto out = std::make_unique<Graph>();
    out->graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    try {
      work();
    } catch (...) {
      try {
        out->graph.capture_end();  // leaves the stream usable; that the recording is invalid is known already
      } catch (const c10::Error&) {
      }
      throw;
    }
    out->graph.capture_end();
    return out;
  }

 private:
  struct Graph final : DeviceGraph {
    void replay() override { graph.replay(); }
    at::cuda::CUDAGraph graph;
  };
};

}  // namespace moecod::cuda
