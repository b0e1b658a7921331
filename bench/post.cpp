// The random field of one picture on one core: what an iteration and the appearance kernel's filter cost.
//
//     bench_post --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "moecod/post/crf.hpp"
#include "moecod/post/filter/pairwise.hpp"

namespace {

using namespace moecod;

/// Colours that vary slowly, with noise: about as many different ones in reach of a pixel as a photograph has.
Image picture(int64_t side) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> noise(0, 8);
  Image out(side, side, 3);
  for (int64_t y = 0; y < side; ++y)
    for (int64_t x = 0; x < side; ++x) {
      const double v = 2 * double(y) / double(side), u = 2 * double(x) / double(side);
      const double light = 110 + 40 * std::sin(5 * u + std::cos(3 * v)) + 25 * std::cos(9 * v - 4 * u);
      for (int64_t c = 0; c < 3; ++c)
        out.at(y, x, c) = uint8_t(std::clamp(light + 12 * double(c) + noise(random), 0.0, 255.0));
    }
  return out;
}

/// range(0) the picture's side, range(1) iterations.
template <class Filter>
void crf(benchmark::State& state) {
  const int64_t side = state.range(0);
  const Image rgb = picture(side);
  std::vector<double> map(std::size_t(side * side));
  for (std::size_t i = 0; i < map.size(); ++i) map[i] = 0.5 + 0.4 * std::sin(0.001 * double(i));
  for (auto _ : state) {
    const auto q = post::crf<Filter>(rgb, map, {.iterations = state.range(1)});
    benchmark::DoNotOptimize(q.data());
  }
  state.SetItemsProcessed(state.iterations());
}

BENCHMARK(crf<post::filter::Permutohedral<5>>)
    ->ArgsProduct({{96, 416}, {1, 5}})
    ->ArgNames({"side", "iterations"})
    ->Unit(benchmark::kMillisecond)
    ->Name("crf_lattice");
BENCHMARK(crf<post::filter::Pairwise<5>>)
    ->Args({96, 1})
    ->ArgNames({"side", "iterations"})
    ->Unit(benchmark::kMillisecond)
    ->Name("crf_pairwise");

}  // namespace
