#pragma once
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <functional>
#include <memory>

#include "moecod/core/device_graph.hpp"

namespace moecod::cuda {

/// Records CUDA graphs, by LibTorch's at::cuda::CUDAGraph. Needs the CUDA toolkit's headers.
///
/// The default stream cannot be recorded: run the program on another (c10::cuda::CUDAStreamGuard), from before the model's
/// first backward pass, so that its gradients are accumulated there, and make the recorder there. It records on that
/// stream whichever is the current one; replays are on the current one. Other threads may work on other streams meanwhile.
class GraphRecorder final : public moecod::GraphRecorder {
 public:
  bool ready() const override {
    const c10::cuda::CUDAStream none = c10::cuda::getDefaultCUDAStream(home_.device_index());
    return home_ != none && c10::cuda::getCurrentCUDAStream(home_.device_index()) != none &&
           c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None;  // else part of an outer call
  }
  Pool new_pool() override { return at::cuda::graph_pool_handle(); }

  std::unique_ptr<DeviceGraph> record(Pool pool, const std::function<void()>& work) override {
    const c10::cuda::CUDAStreamGuard guard(home_);
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
  c10::cuda::CUDAStream home_ = c10::cuda::getCurrentCUDAStream();

  struct Graph final : DeviceGraph {
    void replay() override { graph.replay(); }
    at::cuda::CUDAGraph graph;
  };
};

}  // namespace moecod::cuda
