// The dispatchers on the CPU: E = 6 experts, K = 2, images over convolutional experts and positions over MLPs.
//
//     bench_dispatch --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include "bench/seed_batching.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/dispatch/sequential.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace {

using namespace moecod;
using bench::SeedBatching;
using dispatch::Batched;
using dispatch::Grouped;
using dispatch::Sequential;

constexpr int64_t experts = 6;

template <class Dispatch, bool Backward, class Expert>
void measure(benchmark::State& state, const typename Expert::Options& options, const at::Tensor& input) {
  torch::manual_seed(1);
  Replicated<Expert, experts> store(options);
  const Routing routing = select::TopK<2>::select(at::randn({input.size(0), experts}), {}, true);
  const at::Tensor x = input.clone().set_requires_grad(Backward);
  const torch::AutoGradMode record(Backward);
  for (auto _ : state) {
    const at::Tensor y = Dispatch::run(store, x, routing).y;
    if constexpr (Backward) {
      store.zero_grad();
      y.square().sum().backward();
    }
    benchmark::DoNotOptimize(y.const_data_ptr());
  }
  state.SetItemsProcessed(state.iterations() * input.size(0));
}

/// range(0) channels, range(1) height and width; 8 images.
template <class Dispatch, bool Backward>
void conv(benchmark::State& state) {
  const int64_t channels = state.range(0), side = state.range(1);
  measure<Dispatch, Backward, expert::Conv<>>(state, {.channels = channels}, at::randn({8, channels, side, side}));
}

/// range(0) channels, range(1) positions.
template <class Dispatch, bool Backward>
void mlp(benchmark::State& state) {
  const int64_t channels = state.range(0);
  measure<Dispatch, Backward, expert::Mlp<>>(state, {.channels = channels}, at::randn({state.range(1), channels}));
}

constexpr bool forward = false, forward_backward = true;

void conv_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"channels", "side"})->Args({32, 22})->Args({64, 22})->Args({128, 22})->Args({320, 11});
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}
void mlp_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"channels", "positions"})->Args({32, 484})->Args({128, 1936})->Args({320, 484});
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}

BENCHMARK_TEMPLATE(conv, Sequential, forward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, SeedBatching, forward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, Batched, forward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, Grouped, forward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, Sequential, forward_backward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, SeedBatching, forward_backward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, Batched, forward_backward)->Apply(conv_sizes);
BENCHMARK_TEMPLATE(conv, Grouped, forward_backward)->Apply(conv_sizes);

BENCHMARK_TEMPLATE(mlp, Sequential, forward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, SeedBatching, forward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, Batched, forward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, Grouped, forward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, Sequential, forward_backward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, Batched, forward_backward)->Apply(mlp_sizes);
BENCHMARK_TEMPLATE(mlp, Grouped, forward_backward)->Apply(mlp_sizes);

}  // namespace
