// What each backbone costs: one image on the CPU, with its parameters and multiply-adds as counters.
//
//     bench_backbones --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <string>

#include "moecod/backbone/any.hpp"
#include "moecod/model/mac_counter.hpp"
#include "moecod/model/summary.hpp"

namespace {

using namespace moecod;

void forward(benchmark::State& state, const std::string& name, int64_t side) {
  const at::NoGradGuard no_grad;
  torch::manual_seed(0);
  const auto model = backbone::Any::make({.name = name});
  model->eval();
  const at::Tensor image = at::randn({1, 3, side, side});
  {
    const MacCounter counter;
    model->forward(image);
    state.counters["GMAC"] = double(counter.total()) * 1e-9;
  }
  state.counters["Mparameters"] = double(parameter_count(*model)) * 1e-6;
  for (auto _ : state) {
    const Pyramid levels = model->forward(image);
    benchmark::DoNotOptimize(levels.back().const_data_ptr());
  }
}

const bool registered = [] {
  for (const std::string& name : backbone::Any::names())
    for (const int64_t side : {64, 416})
      benchmark::RegisterBenchmark((name + "/side:" + std::to_string(side) + "/").c_str(), forward, name, side)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
  return true;
}();

}  // namespace
