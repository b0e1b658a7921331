#pragma once
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <future>
#include <optional>
#include <utility>

#include "moecod/core/side_stream.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/train/batch.hpp"

namespace moecod::train {

/// A loader's batches on a device, each uploaded while the one before it is worked on.
///
/// On CUDA a thread takes the next batch from the loader, uploads it and does what is left of its augmentation, on a
/// stream of its own, and next() makes the current stream wait for that, not the host; elsewhere next() does all of it.
/// The loader, which must have been started, is not for others to use meanwhile. Synchronises: never.
/// Errors: what the loader throws.
template <data::source Source>
class Uploads {
 public:
  Uploads(data::Loader<Source>& loader, at::Device device) : loader_(loader), device_(device) {
    if (!device.is_cuda()) return;
    stream_ = side_stream(device, 0);
    prepare();
  }

  /// The next batch of the loader's epoch, or none at its end.
  std::optional<DeviceBatch> next() {
    if (!stream_) {
      auto batch = loader_.next();
      return batch ? std::optional(to_device(std::move(*batch), device_)) : std::nullopt;
    }
    std::optional<Uploaded> ready = coming_.get();
    if (!ready) {
      coming_ = std::async(std::launch::deferred, [] { return std::optional<Uploaded>(); });
      return std::nullopt;
    }
    prepare();
    const c10::Stream current = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    ready->done.block(current);
    // Their memory belongs to the other stream, which must not hand it out anew before this one is through with it.
    for (const at::Tensor& tensor : {ready->batch.images, ready->batch.masks}) tensor.record_stream(current);
    return std::move(ready->batch);
  }

 private:
  struct Uploaded {
    DeviceBatch batch;
    c10::Event done;
  };

  void prepare() {
    coming_ = std::async(std::launch::async, [this]() -> std::optional<Uploaded> {
      auto batch = loader_.next();
      if (!batch) return std::nullopt;
      const c10::StreamGuard guard(*stream_);
      Uploaded out{to_device(std::move(*batch), device_), c10::Event(device_.type())};
      out.done.record(*stream_);
      return out;
    });
  }

  data::Loader<Source>& loader_;
  at::Device device_;
  std::optional<c10::Stream> stream_;
  std::future<std::optional<Uploaded>> coming_;
};

}  // namespace moecod::train
