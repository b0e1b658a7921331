#pragma once
#include <ATen/autocast_mode.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/cuda/CUDAGuard.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

#include "tests/laws/support.hpp"

/// What the tests of kernels share.
#define MOECOD_NEEDS_CUDA() \
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device"
#define MOECOD_NEEDS_HOPPER() \
  MOECOD_NEEDS_CUDA();        \
  if (!moecod::on_cuda::is_hopper()) GTEST_SKIP() << "the kernels need compute capability 9.0"

namespace moecod::on_cuda {

using laws::close;
using laws::same;

using Tensors = std::vector<at::Tensor>;

inline bool is_hopper() {
  const auto* device = at::cuda::getCurrentDeviceProperties();
  return device->major == 9 && device->minor == 0;
}

inline at::TensorOptions on(at::ScalarType type) { return at::TensorOptions().dtype(type).device(at::kCUDA); }

constexpr auto channels_last = at::MemoryFormat::ChannelsLast;

/// 0 and the end of each expert's images, of which there are so many.
inline std::vector<int32_t> ends_of(const std::vector<int64_t>& images) {
  std::vector<int32_t> out{0};
  for (int64_t n : images) out.push_back(out.back() + static_cast<int32_t>(n));
  return out;
}

inline at::Tensor offsets_of(const std::vector<int64_t>& images) { return at::tensor(ends_of(images), at::kInt).cuda(); }

/// f() gives the same bits every time.
template <class F>
void expect_repeats(F&& f, int times = 20) {
  const Tensors first = f();
  for (int i = 1; i < times; ++i) {
    const Tensors again = f();
    for (std::size_t t = 0; t < first.size(); ++t)
      ASSERT_TRUE(at::equal(first[t], again[t])) << "result " << t << " changed in run " << i;
  }
}

/// f() does nothing that makes the host wait for the device.
template <class F>
void expect_waits_never(F&& f) {
  f();
  at::globalContext();
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  EXPECT_NO_THROW(f());
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
}

/// Bytes that live tensors take on the device.
inline int64_t allocated() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0].current;
}

/// f() captured in a graph once; `change` moves its inputs in place, after which a replay must give what f() gives.
template <class F, class Change>
void expect_captures(F&& f, Change&& change, int replays = 4) {
  const auto stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard on_stream(stream);
  f();  // what is set up at the first call is not to be captured
  stream.synchronize();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensors captured = f();
  graph.capture_end();
  for (int i = 0; i < replays; ++i) {
    change(i);
    graph.replay();
    stream.synchronize();
    const Tensors eager = f();
    for (std::size_t t = 0; t < eager.size(); ++t)
      ASSERT_TRUE(at::equal(captured[t], eager[t])) << "result " << t << " of replay " << i;
  }
}

/// ||a - b|| / ||b|| in float64; NaN is never small.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().to(at::kDouble), y = b.detach().to(at::kDouble);
  if (y.numel() == 0) return 0;
  return ((x - y).norm() / y.norm().clamp_min(1e-30)).item<double>();
}

/// Logits [N, E] that send rows to experts evenly, by a Zipf law, or all to the first ones.
enum class Load { uniform, zipf, one };
inline at::Tensor logits_of(Load load, int64_t rows, int64_t experts) {
  const at::Tensor noise = at::randn({rows, experts}, on(at::kFloat));
  if (load == Load::uniform) return noise;
  const at::Tensor rank = at::arange(experts, on(at::kFloat));
  return load == Load::zipf ? noise - rank.add(1).log() * 2 : noise - rank * 20;
}

}  // namespace moecod::on_cuda
