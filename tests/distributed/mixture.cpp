// Ranks that share a batch against one process that has it all.
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <memory>
#include <string>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/core/zero_gradients.hpp"
#include "moecod/distributed/share.hpp"
#include "moecod/distributed/synchronise_statistics.hpp"
#include "moecod/expert/contrast.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/edge.hpp"
#include "moecod/layers/norm.hpp"
#include "moecod/moe/moe.hpp"
#include "tests/distributed/job.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using namespace moecod::test;

constexpr int64_t channels = 8;

/// One model twice, with the same start: `shared` is trained by all ranks, `whole` by each rank for itself.
template <class Model>
struct Pair {
  Pair(const typename Model::Options& options) {
    torch::manual_seed(3);
    shared = std::make_shared<Model>(options);
    torch::manual_seed(3);
    whole = std::make_shared<Model>(options);
    shared->to(job().device);
    whole->to(job().device);
    distributed::synchronise_statistics(*shared, job().group);
    sync = job().group->average_gradients(shared->parameters());
  }
  std::shared_ptr<Model> shared, whole;
  std::unique_ptr<distributed::GradientSync> sync;
};

// Values of 1e3 beside a deviation of 1: sums of squares would lose them in float32.
TEST(SynchronisedNorm, IsTheNormOfTheWholeBatch) {
  torch::manual_seed(5);
  const at::Tensor all = (at::randn({3 * world(), channels, 5, 4}) + 1000).to(job().device);
  const at::Tensor pull = at::randn_like(all);
  layers::BatchNorm2d<> shared(channels), whole(channels);
  shared.to(job().device);
  whole.to(job().device);
  shared.ranks = job().group;
  const at::Tensor x = share_of(all).clone().set_requires_grad(true), y = all.clone().set_requires_grad(true);
  const at::Tensor out = shared.forward(x), expected = whole.forward(y);
  EXPECT_LT(difference(out, share_of(expected)), 2e-4);  // 1e3 in float32 has steps of 6e-5
  (out * share_of(pull)).sum().backward();
  (expected * pull).sum().backward();
  EXPECT_LT(difference(x.grad(), share_of(y.grad())), 1e-3);
  at::Tensor d_weight = shared.weight.grad().clone(), d_bias = shared.bias.grad().clone();
  job().group->sum(d_weight);
  job().group->sum(d_bias);
  EXPECT_LT(difference(d_weight, whole.weight.grad()), 1e-3);
  EXPECT_LT(difference(d_bias, whole.bias.grad()), 1e-4);
  EXPECT_LT(difference(shared.running_mean, whole.running_mean), 1e-6);
  EXPECT_LT(difference(shared.running_var, whole.running_var), 1e-4);
  EXPECT_TRUE(at::equal(shared.num_batches_tracked, whole.num_batches_tracked));
}

TEST(SynchronisedNorm, TakesARankWithoutRowsAndASingleValue) {
  torch::manual_seed(6);
  const at::Tensor rows = at::randn({4, channels, 3, 3}).to(job().device);
  layers::BatchNorm2d<> shared(channels), whole(channels);
  shared.to(job().device);
  whole.to(job().device);
  shared.ranks = job().group;
  // The last rank alone has rows.
  const at::Tensor x = (rank() + 1 == world() ? rows : rows.slice(0, 0, 0)).clone().set_requires_grad(true);
  const at::Tensor out = shared.forward(x), expected = whole.forward(rows);
  if (rank() + 1 == world()) {
    EXPECT_LT(difference(out, expected), 1e-5);
  }
  out.square().sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_LT(difference(shared.running_var, whole.running_var), 1e-5);
  // One value a channel on all ranks together says nothing of a variance: nothing moves.
  const at::Tensor before = shared.running_var.clone();
  const at::Tensor one = (rank() == 0 ? rows.slice(0, 0, 1) : rows.slice(0, 0, 0)).slice(2, 0, 1).slice(3, 0, 1);
  const at::Tensor kept = shared.forward(one);
  EXPECT_TRUE(at::equal(shared.running_var, before));
  EXPECT_EQ(shared.num_batches_tracked.item<int64_t>(), 1);
  if (rank() == 0) {
    const at::Tensor by_running = (one.flatten(1) - shared.running_mean) / (shared.running_var + 1e-5).sqrt();
    EXPECT_TRUE(at::allclose(kept.flatten(1), by_running, 1e-4, 1e-5));
  }
}

template <class Experts, class Dispatch, class Balance>
using Block = Mixture<router::GlobalPool, Experts, select::TopK<2>, Balance, Dispatch>;
using Stack = Replicated<expert::Conv<>, 4>;
using Kinds = Distinct<expert::Conv<>, expert::Edge<>, expert::Contrast<>, expert::Conv<>>;

template <class T>
class MixtureOverRanks : public testing::Test {};
using Blocks = testing::Types<Block<Stack, dispatch::Batched, balance::LossFree>, Block<Stack, dispatch::Grouped, balance::EmaBias>,
                              Block<Kinds, dispatch::Batched, balance::SmoothBias>, Block<Kinds, dispatch::Masked, balance::LossFree>>;
TYPED_TEST_SUITE(MixtureOverRanks, Blocks);

template <class Model>
typename Model::Options block_options() {
  typename Model::Options options;
  options.router.channels = channels;
  if constexpr (requires { options.experts.channels; }) options.experts.channels = channels;
  if constexpr (requires { options.experts.each; })
    std::apply([](auto&... each) { ((each.channels = channels), ...); }, options.experts.each);
  return options;
}

/// Rank 0's rows go to experts 0 and 1, the others' to experts 2 and 3, so that on two ranks every rank has idle experts.
Routing split_routing(int64_t rows_of_a_rank) {
  std::vector<int64_t> experts;
  std::vector<float> weights;
  for (int64_t r = 0; r < world(); ++r) {
    for (int64_t i = 0; i < rows_of_a_rank; ++i) {
      const int64_t first = r == 0 ? 0 : 2;
      experts.insert(experts.end(), {first, first + 1});
      weights.insert(weights.end(), {0.75F, 0.25F});
    }
  }
  const std::vector<int64_t> shape{world() * rows_of_a_rank, 2};
  return Routing::given(at::tensor(experts).view(shape).to(job().device), at::tensor(weights).view(shape).to(job().device), 4);
}

Routing share_of(const Routing& all) {
  return Routing::given(moecod::test::share_of(all.experts), moecod::test::share_of(all.weights), all.num_experts());
}

// Synchronised statistics, experts without rows on a rank, SGD: twenty losses as in one process.
TYPED_TEST(MixtureOverRanks, TrainsAsOneProcessWithTheWholeBatch) {
  Pair<TypeParam> pair(block_options<TypeParam>());
  constexpr int64_t rows = 3;
  const Routing routing = split_routing(rows);
  torch::manual_seed(8);
  const at::Tensor target = at::randn({world() * rows, channels, 6, 6}).to(job().device);
  for (int step = 0; step < 20; ++step) {
    const at::Tensor x = at::randn({world() * rows, channels, 6, 6}).to(job().device);
    pair.sync->begin_step();
    const at::Tensor loss =
        (pair.shared->run(moecod::test::share_of(x), share_of(routing)).y - moecod::test::share_of(target)).square().mean();
    pair.sync->last_backward(loss).backward();
    const at::Tensor whole = (pair.whole->run(x, routing).y - target).square().mean();
    whole.backward();
    at::Tensor mean = loss.detach().clone();
    job().group->sum(mean);
    EXPECT_NEAR(mean.template item<double>() / double(world()), whole.template item<double>(), 1e-5) << "step " << step;
    descend(*pair.shared);
    descend(*pair.whole);
  }
  const StateDict mine = state_dict(*pair.shared), theirs = state_dict(*pair.whole);
  for (std::size_t i = 0; i < mine.size(); ++i)
    EXPECT_LT(difference(mine[i].second, theirs[i].second), 1e-3) << mine[i].first;
}

// Integers: the bias of ranks is that of one process, bit for bit.
TYPED_TEST(MixtureOverRanks, BalancesAsOneProcessWithTheWholeBatch) {
  Pair<TypeParam> pair(block_options<TypeParam>());
  for (int step = 0; step < 10; ++step) {
    torch::manual_seed(20 + step);
    const at::Tensor chosen = std::get<1>(at::sort(at::randn({world() * 6, 4}), 1)).slice(1, 0, 2).clamp(0, 2 + step % 2).contiguous();
    const at::Tensor distinct = at::cat({chosen.slice(1, 0, 1), (chosen.slice(1, 0, 1) + 1).remainder(4)}, 1).to(job().device);
    const Routing all = Routing::given(distinct, at::ones_like(distinct, at::kFloat) / 2, 4);
    pair.shared->balance->count(share_of(all));
    pair.whole->balance->count(all);
    balance::commit(*pair.shared, [](at::Tensor& counts) { job().group->sum(counts); });
    balance::commit(*pair.whole);
  }
  EXPECT_TRUE(at::equal(pair.shared->balance->bias, pair.whole->balance->bias));
  EXPECT_GT(pair.whole->balance->bias.abs().sum().template item<double>(), 0);
}

TEST(MixtureOverRanks, SequentialIsRefused) {
  using Model = Block<Stack, dispatch::Sequential, balance::None>;
  Pair<Model> pair(block_options<Model>());
  const std::string error =
      error_of([&] { pair.shared->run(at::randn({2, channels, 4, 4}).to(job().device), Routing::all(2, 4, job().device)); });
  EXPECT_NE(error.find("dispatch::Sequential"), std::string::npos) << error;
}

}  // namespace
