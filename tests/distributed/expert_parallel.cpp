// Experts spread over ranks against one process that has all experts and the whole batch.
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/distributed/spread_experts.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/expert/swiglu.hpp"
#include "moecod/moe/moe.hpp"
#include "tests/distributed/job.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using namespace moecod::test;

constexpr int64_t channels = 8, experts = 6, rows = 5;

template <class Dispatch>
using Images = Mixture<router::GlobalPool, Replicated<expert::Conv<>, experts>, select::TopK<2>, balance::LossFree, Dispatch>;
template <class Dispatch>
using Positions = Mixture<router::Position, Replicated<expert::Mlp<>, experts>, select::TopK<2>, balance::Switch, Dispatch>;

/// `change`: of the options.
template <class Model, class Change>
std::shared_ptr<Model> make(Change change) {
  torch::manual_seed(11);
  typename Model::Options options;
  options.router.channels = options.experts.channels = channels;
  change(options);
  auto model = std::make_shared<Model>(options);
  model->to(job().device);
  return model;
}
template <class Model>
std::shared_ptr<Model> make() {
  return make<Model>([](auto&) {});
}

template <class T>
class ExpertParallel : public testing::Test {};
using Blocks = testing::Types<Images<dispatch::Batched>, Images<dispatch::Grouped>, Positions<dispatch::Grouped>>;
TYPED_TEST_SUITE(ExpertParallel, Blocks);

/// Twenty steps of descent under a routing of the model's own, or with `to_first` with every row at expert 0: only the
/// first rank has work.
template <class Block>
void compare(bool to_first) {
  using Spread = swap_t<Block, dispatch::ExpertParallel<typename Block::dispatch_type>>;
  const auto spread = make<Spread>();
  const auto whole = make<Block>();
  distributed::spread_experts(*spread, job().group);
  EXPECT_EQ(distributed::has_spread_experts(*spread), world() > 1);
  std::vector<at::Tensor> shared;
  for (const at::Tensor& p : spread->router->parameters()) shared.push_back(p);
  const auto sync = job().group->average_gradients(shared);
  const auto run = [&](auto& model, const at::Tensor& x) {
    if (!to_first) return model.forward(x);
    const int64_t n = std::is_same_v<typename Block::experts_type::rows, rows::Positions> ? x.size(0) * x.size(2) * x.size(3) : x.size(0);
    return model.run(x, Routing::to(0, n, experts, job().device));
  };
  for (int step = 0; step < 20; ++step) {
    torch::manual_seed(50 + step);
    const at::Tensor all = at::randn({world() * rows, channels, 4, 4}).to(job().device);
    const at::Tensor x = share_of(all).clone().set_requires_grad(true), y = all.clone().set_requires_grad(true);
    if (!to_first) sync->begin_step();
    const at::Tensor out = run(*spread, x).y, expected = run(*whole, y).y;
    EXPECT_LT(difference(out, share_of(expected)), 1e-4) << "step " << step;
    const at::Tensor loss = (out - 0.1).square().mean();
    (to_first ? loss : sync->last_backward(loss)).backward();
    (expected - 0.1).square().mean().backward();
    // The loss of a rank is a mean over its own rows, that of the whole a mean over all.
    EXPECT_LT(difference(x.grad() / double(world()), share_of(y.grad())), 1e-3) << "step " << step;
    descend(*spread);
    descend(*whole);
  }
  distributed::gather_experts(*spread);
  EXPECT_FALSE(distributed::has_spread_experts(*spread));
  const StateDict mine = state_dict(*spread), theirs = state_dict(*whole);
  ASSERT_EQ(mine.size(), theirs.size());
  for (std::size_t i = 0; i < mine.size(); ++i) {
    EXPECT_EQ(mine[i].first, theirs[i].first);
    if (mine[i].first.starts_with("balance")) continue;  // counts of a rank's own rows
    EXPECT_LT(difference(mine[i].second, theirs[i].second), 1e-3) << mine[i].first;
  }
}

TYPED_TEST(ExpertParallel, TrainsAsOneProcessWithAllExperts) { compare<TypeParam>(false); }

TYPED_TEST(ExpertParallel, TrainsWhereOnlyOneRankHasWork) { compare<TypeParam>(true); }

/// In bfloat16 on a GPU of compute capability 9.0 the experts sort, run and combine the rows they were sent by one operator.
TEST(ExpertParallelSwiGlu, OneStepIsThatOfOneProcess) {
  using Block =
      Mixture<router::Position, Replicated<expert::SwiGlu<>, experts>, select::TopK<2>, balance::None, dispatch::Grouped>;
  using Spread = swap_t<Block, dispatch::ExpertParallel<dispatch::Grouped>>;
  constexpr int64_t d = 64, each = 300;
  const auto type = job().device.is_cuda() ? at::kBFloat16 : at::kFloat;
  const auto widths = [](auto& options) {
    options.router.channels = options.experts.channels = d;
    options.experts.hidden = d / 2;
  };
  const auto spread = make<Spread>(widths);
  const auto whole = make<Block>(widths);
  spread->to(type);
  whole->to(type);
  distributed::spread_experts(*spread, job().group);

  torch::manual_seed(13);
  const int64_t n = world() * each;
  const at::Tensor all = at::randn({n, d}).to(on_device(type)), weights = at::rand({n, 2}).to(job().device);
  const at::Tensor first = at::randint(experts, {n, 1}), next = (first + at::randint(1, experts, {n, 1})).remainder(experts);
  const at::Tensor chosen = at::cat({first, next}, 1).to(on_device(at::kInt));
  const auto step = [&](auto& model, const at::Tensor& rows, const at::Tensor& to, const at::Tensor& by) {
    const at::Tensor x = rows.clone().set_requires_grad(true), w = by.clone().set_requires_grad(true);
    const at::Tensor y = model.run(x, Routing::given(to, w, experts)).y;
    y.to(at::kFloat).square().mean().backward();
    return std::vector<at::Tensor>{y, x.grad(), w.grad()};
  };
  const auto mine = step(*spread, share_of(all), share_of(chosen), share_of(weights));
  const auto theirs = step(*whole, all, chosen, weights);
  const double close = type == at::kFloat ? 1e-4 : 1e-2;
  EXPECT_LT(difference(mine[0], share_of(theirs[0])), close);
  for (std::size_t i = 1; i < 3; ++i)  // the loss of a rank is a mean over its own rows
    EXPECT_LT(difference(mine[i] / double(world()), share_of(theirs[i])), close) << (i == 1 ? "x" : "weights");
  const auto here = spread->experts->parameters(), there = whole->experts->parameters();
  ASSERT_EQ(here.size(), there.size());
  for (std::size_t i = 0; i < here.size(); ++i) EXPECT_LT(difference(here[i].grad(), share_of(there[i].grad())), close) << i;
}

TEST(SpreadExperts, HoldsAShareUnderTheNamesOfTheWhole) {
  if (world() == 1) GTEST_SKIP() << "one rank";
  using Model = Images<dispatch::ExpertParallel<dispatch::Grouped>>;
  const auto model = make<Model>();
  const StateDict before = state_dict(*model);
  std::vector<at::Tensor> copies;
  for (const auto& entry : before) copies.push_back(entry.second.clone());
  distributed::spread_experts(*model, job().group);
  const int64_t here = experts / world();
  EXPECT_EQ(model->experts->stack_size(), here);
  const std::string first = "experts." + std::to_string(rank() * here) + ".";
  bool found = false;
  for (const auto& entry : state_dict(*model)) found = found || entry.first.starts_with(first);
  EXPECT_TRUE(found) << first;
  distributed::gather_experts(*model);
  const StateDict after = state_dict(*model);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i < after.size(); ++i) {
    EXPECT_EQ(after[i].first, before[i].first);
    EXPECT_TRUE(at::equal(after[i].second, copies[i])) << after[i].first;
  }
}

TEST(SpreadExperts, ANumberThatDoesNotDivideIsRefused) {
  if (world() == 1) GTEST_SKIP() << "one rank";
  using Model = Mixture<router::GlobalPool, Replicated<expert::Conv<>, 7>, select::TopK<2>, balance::None,
                        dispatch::ExpertParallel<dispatch::Grouped>>;
  const auto model = make<Model>();
  const std::string error = error_of([&] { distributed::spread_experts(*model, job().group); });
  EXPECT_NE(error.find("7 experts cannot be spread evenly over " + std::to_string(world())), std::string::npos) << error;
}

}  // namespace
