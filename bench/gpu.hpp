#pragma once
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <benchmark/benchmark.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

/// Timing on a GPU with events, for Google Benchmark's manual time.
///
/// A case makes several sets of inputs, together larger than the L2 cache, and is called on one after the other, so
/// that small cases do not measure the cache. Calls are timed as replays of one graph of many calls (`graph`: what the
/// device needs) or called one by one (`eager`: what a program waits for). The result of a case is the median of its
/// rounds.
namespace moecod::bench {

inline constexpr double cold_bytes = 256e6;  // more than twice the L2 cache of an H200
inline constexpr int rounds = 11;

/// Seconds of one round, the median of several.
template <class F>
double median_seconds(F&& round, int rounds = bench::rounds) {
  std::vector<double> seconds;
  at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  for (int i = 0; i < rounds; ++i) {
    begin.record(stream);
    round();
    end.record(stream);
    end.synchronize();
    seconds.push_back(1e-3 * begin.elapsed_time(end));
  }
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[rounds / 2];
}

/// Bytes per second of a device-to-device copy of 2 GiB, read and written bytes counted.
inline double copy_bandwidth() {
  static const double bandwidth = [] {
    const at::Tensor from = at::randint(256, {int64_t{1} << 31}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA));
    at::Tensor to = at::empty_like(from);
    to.copy_(from);
    return 2.0 * static_cast<double>(from.numel()) / median_seconds([&] { to.copy_(from); });
  }();
  return bandwidth;
}

/// Times call(i) for i in [0, sets).
inline void time(benchmark::State& state, double bytes, bool graph, const std::function<void(int)>& call, int sets) {
  const int calls = bytes > cold_bytes ? 2 : std::max(20, sets);
  const auto all = [&] {
    for (int i = 0; i < calls; ++i) call(i % sets);
  };
  for (int i = 0; i < 2; ++i) call(i % sets);
  at::cuda::device_synchronize();
  at::cuda::CUDAGraph captured;
  if (graph) {
    captured.capture_begin();
    all();
    captured.capture_end();
  }
  const auto round = [&] { graph ? captured.replay() : all(); };
  round();
  at::cuda::device_synchronize();
  for (auto _ : state) state.SetIterationTime(median_seconds(round) / calls);
  const double floor = bytes / copy_bandwidth();
  state.counters["bytes"] = bytes;
  state.counters["floor_us"] = floor * 1e6;
}

inline int sets_for(double bytes) { return static_cast<int>(std::clamp(cold_bytes / bytes, 1.0, 64.0)); }

/// Adds a case of one iteration, whose time is a median already.
template <class F>
void add(const std::string& name, F&& f) {
  const auto tidy = [f](benchmark::State& state) {
    f(state);
    c10::cuda::CUDACachingAllocator::emptyCache();  // graphs keep pools of their own
  };
  benchmark::RegisterBenchmark(name.c_str(), tidy)->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}

/// Runs what was added; the context names the device and the versions.
inline int run(int argc, char** argv) {
  if (!torch::cuda::is_available()) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  const c10::cuda::CUDAStreamGuard on_stream(c10::cuda::getStreamFromPool());  // the default one cannot be captured
  const auto* device = at::cuda::getCurrentDeviceProperties();
  benchmark::AddCustomContext("device", device->name);
  benchmark::AddCustomContext("multiprocessors", std::to_string(device->multiProcessorCount));
  benchmark::AddCustomContext("libtorch", TORCH_VERSION);
  benchmark::AddCustomContext("copy_bandwidth_GBs", std::to_string(copy_bandwidth() / 1e9));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace moecod::bench
