// What ranks cost one another on GPUs: messages of several sizes, and experts of one mixture kept on every rank or spread.
//
//   torchrun --standalone --nproc-per-node=4 --no-python bench_ranks

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/job.hpp"
#include "moecod/core/autocast.hpp"
#include "moecod/distributed/spread_experts.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/moe/moe.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;

/// Median milliseconds of `f` on the device, over 20 runs behind 5 of warm-up.
double milliseconds(const std::function<void()>& f) {
  std::vector<double> times;
  for (int run = 0; run < 25; ++run) {
    at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    begin.record();
    f();
    end.record();
    end.synchronize();
    if (run >= 5) times.push_back(begin.elapsed_time(end));
  }
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  return times[10];
}

void say(const Job& job, nlohmann::ordered_json line) {
  line["ranks"] = job.group->world();
  if (job.writes()) std::cout << line.dump() << std::endl;
}

void messages(const Job& job) {
  const int64_t world = job.group->world();
  for (const int64_t bytes : {1L << 16, 1L << 20, 1L << 22, 1L << 24, 1L << 26, 1L << 28}) {
    at::Tensor sum = at::zeros({bytes / 4}, at::TensorOptions(at::kFloat).device(job.device));
    const at::Tensor rows = at::zeros({world, bytes / world / 2}, at::TensorOptions(at::kBFloat16).device(job.device));
    const std::vector<int64_t> one(std::size_t(world), 1);
    say(job, {{"bytes", bytes},
              {"all_reduce_ms", milliseconds([&] { job.group->sum(sum); })},
              {"all_to_all_ms", milliseconds([&] { job.group->exchange(rows, one, one); })}});
  }
}

/// Forward and backward of a mixture, gradients averaged; every expert gets as many rows.
template <class Block>
double step(const Job& job, typename Block::Options options, const at::Tensor& input, int64_t rows) {
  torch::manual_seed(0);
  auto block = std::make_shared<Block>(options);
  block->to(job.device);
  distributed::spread_experts(*block, job.group);
  const auto sync = job.group->average_gradients(distributed::shared_parameters(*block));
  const at::Tensor x = input.detach().clone().set_requires_grad(true);
  const auto longs = at::TensorOptions(at::kLong).device(job.device);
  const at::Tensor experts = at::arange(rows * 2, longs).remainder(Block::num_experts).view({rows, 2});
  const Routing forced = Routing::given(experts, at::full({rows, 2}, 0.5, longs.dtype(at::kFloat)), Block::num_experts);
  return milliseconds([&] {
    sync->begin_step();
    at::Tensor loss;
    {
      const AutocastGuard autocast({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true});
      Routing routing = block->route(x);
      routing.experts = forced.experts;
      routing.counts = forced.counts;
      routing.assignments = forced.assignments;
      loss = block->run(x, routing).y.to(at::kFloat).mean();
    }
    sync->last_backward(loss).backward();
    for (at::Tensor& p : block->parameters())
      if (p.grad().defined()) p.mutable_grad().zero_();
  });
}

template <class Router, class Expert, class Inner, int64_t E>
void compare(const Job& job, const std::string& name, int64_t channels, const at::Tensor& input, int64_t rows) {
  using Experts = Replicated<Expert, E>;
  using Kept = Mixture<Router, Experts, select::TopK<2>, balance::None, Inner>;
  using Spread = swap_t<Kept, dispatch::ExpertParallel<Inner>>;
  typename Kept::Options kept;
  kept.router.channels = kept.experts.channels = channels;
  typename Spread::Options spread;
  spread.router.channels = spread.experts.channels = channels;
  int64_t parameters = 0;
  for (const at::Tensor& p : Experts(kept.experts).parameters()) parameters += p.numel();
  say(job, {{"mixture", name},
            {"rows", rows},
            {"channels", channels},
            {"expert_parameters", parameters},
            {"sent_bytes", rows * 2 * (input.numel() / rows) * 2},
            {"kept_ms", step<Kept>(job, kept, input, rows)},
            {"spread_ms", step<Spread>(job, spread, input, rows)}});
}

int run() {
  const Job job = open_job({.device = "cuda", .use_ddp = true});
  messages(job);
  const auto options = at::TensorOptions(at::kFloat).device(job.device);
  for (const auto& [channels, side] : {std::pair<int64_t, int64_t>{64, 112}, {320, 28}, {512, 14}})
    compare<router::GlobalPool, expert::Conv<>, dispatch::Grouped, 8>(
        job, "Conv experts, 24 images of " + std::to_string(side) + " x " + std::to_string(side), channels,
        at::randn({24, channels, side, side}, options), 24);
  for (const auto& [channels, rows] : {std::pair<int64_t, int64_t>{320, 9408}, {1024, 8192}, {2048, 2048}})
    compare<router::Position, expert::Mlp<>, dispatch::Batched, 8>(job, "Mlp experts", channels,
                                                                   at::randn({rows, channels}, options), rows);
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const c10::Error& error) {
    report_error("bench_ranks", error.what_without_backtrace());
  } catch (const std::exception& error) {
    report_error("bench_ranks", error.what());
  }
  return 1;
}
