// The block: routing, dispatchers, storage of experts, mixtures, swap, monitor.
#include <random>

#include "moecod/moe/mixture.hpp"

#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/balance/loss_free.hpp"
#include "moecod/moe/balance/none.hpp"
#include "moecod/moe/balance/switch.hpp"
#include "moecod/moe/dispatch/concurrent.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/dispatch/masked.hpp"
#include "moecod/moe/experts/distinct.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/expert/swiglu.hpp"
#include "moecod/moe/router/position.hpp"
#include "moecod/moe/select/expert_choice.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "moecod/moe/swap.hpp"
#include "tests/laws/dispatch_laws.hpp"
#include "tests/laws/expert_laws.hpp"

namespace moecod::laws {

using Dispatchers = ::testing::Types<dispatch::Sequential, dispatch::Batched, dispatch::Grouped, dispatch::Masked,
                                     dispatch::Concurrent>;
INSTANTIATE_TYPED_TEST_SUITE_P(Moecod, DispatchLaws, Dispatchers);

using Experts = ::testing::Types<expert::Conv<>, expert::Mlp<>, expert::SwiGlu<>, PlainConv>;
INSTANTIATE_TYPED_TEST_SUITE_P(Moecod, ExpertLaws, Experts);

}  // namespace moecod::laws

namespace {

using namespace moecod;
using laws::close;
using laws::normal;
using laws::same;
using laws::sample_routing;

// Routing, gather, combine.

TEST(Routing, GivenChecksItsArguments) {
  const at::Tensor experts = at::tensor({0, 3}, at::kInt).view({1, 2}), weights = at::ones({1, 2});
  EXPECT_EQ(Routing::given(experts, weights, 4).assignments, 2);
  EXPECT_THROW(Routing::given(experts, weights, 3), c10::Error);
  EXPECT_THROW(Routing::given(experts - 2, weights, 4), c10::Error);
  EXPECT_THROW(Routing::given(experts, at::ones({2, 1}), 4), c10::Error);
  EXPECT_THROW(Routing::given(at::full({2, 2}, -1, at::kInt), at::ones({2, 2}), 4), c10::Error);
  EXPECT_THROW(Routing::to(4, 2, 4), c10::Error);
  EXPECT_TRUE(same(Routing::all(3, 4).weights, at::full({3, 4}, 0.25)));
  EXPECT_TRUE(same(Routing::to(1, 3, 4).counts, at::tensor({0, 3, 0, 0}, at::kLong)));
}

TEST(Combine, GatherAndCombineAreEachOthersTranspose) {
  const Routing routing = sample_routing(7, 4, 2, 1);
  const Plan plan(routing);
  const at::Tensor ones = at::ones_like(routing.weights);
  const at::Tensor x = normal({7, 3, 2}, 2).set_requires_grad(true), s = normal({14, 3, 2}, 3).set_requires_grad(true);
  const at::Tensor gathered = gather(x, plan.rows()), combined = combine(s, ones, plan);
  EXPECT_TRUE(close((gathered * s).sum(), (x * combined).sum(), 1e-12)) << "<gather x, s> = <x, combine s>";
  EXPECT_TRUE(same(torch::autograd::grad({(gathered * s.detach()).sum()}, {x})[0], combined.detach()));
  EXPECT_TRUE(same(torch::autograd::grad({(combined * x.detach()).sum()}, {s})[0], gathered.detach()));
}

TEST(Combine, GradientsAreThoseOfFiniteDifferences) {
  const Routing routing = Routing::given(at::tensor({1, -1, 0, 1, -1, 2}, at::kInt).view({3, 2}), normal({3, 2}, 4), 3);
  const Plan plan(routing);
  const at::Tensor s = normal({4, 2}, 5).set_requires_grad(true);
  const at::Tensor w = routing.weights.clone().set_requires_grad(true);
  const auto loss = [&](const at::Tensor& rows, const at::Tensor& weights) {
    const at::Tensor y = combine(rows, weights, plan);
    return (y.square() * laws::probe(y)).sum();
  };
  loss(s, w).backward();
  for (const at::Tensor& leaf : {s, w}) {
    const at::Tensor numeric = at::zeros_like(leaf), flat = leaf.detach().view({-1});
    for (int64_t i = 0; i < leaf.numel(); ++i) {
      const double old = flat[i].item<double>(), h = 1e-6;
      flat[i] = old + h;
      const double up = loss(s.detach(), w.detach()).item<double>();
      flat[i] = old - h;
      const double down = loss(s.detach(), w.detach()).item<double>();
      flat[i] = old;
      numeric.view({-1})[i] = (up - down) / (2 * h);
    }
    EXPECT_TRUE(close(leaf.grad(), numeric, 1e-7));
  }
}

TEST(Combine, IgnoresNanWhereASlotIsUnused) {
  const Routing routing = Routing::given(at::tensor({0, -1, -1, 1, -1, -1}, at::kInt).view({3, 2}), at::ones({3, 2}), 2);
  const at::Tensor sorted = at::tensor({double(NAN), 2.0}, at::kDouble).view({2, 1}).set_requires_grad(true);
  at::Tensor weights = routing.weights.to(at::kDouble).set_requires_grad(true);
  const at::Tensor y = combine(sorted, weights, Plan(routing));
  EXPECT_TRUE(std::isnan(y[0].item<double>()));
  EXPECT_EQ(y[1].item<double>(), 2.0);
  EXPECT_EQ(y[2].item<double>(), 0.0);
  y.slice(0, 1).sum().backward();
  EXPECT_TRUE(same(sorted.grad(), at::tensor({0.0, 1.0}, at::kDouble).view({2, 1})));
  EXPECT_EQ(weights.grad().slice(0, 1).isnan().sum().item<int64_t>(), 0);
}

TEST(Combine, KeepsHalfPrecisionAndAddsInFloat32) {
  const Routing routing = Routing::given(at::tensor({0, 1, 2}, at::kInt).view({1, 3}), at::ones({1, 3}), 3);
  const at::Tensor sorted = at::tensor({256.0, 1.0, 1.0}).view({3, 1}).to(at::kBFloat16);
  const at::Tensor y = combine(sorted, routing.weights, Plan(routing));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(y.item<double>(), 258.0) << "bfloat16 sums would stay at 256";
}

// Experts of different kinds.

struct Pair {
  at::Tensor image;
  at::Tensor context;
  static constexpr auto members = std::make_tuple(&Pair::image, &Pair::context);
};

struct TwoMaps {
  at::Tensor mask, edge;
  at::Tensor& primary() { return mask; }
  static constexpr auto members = std::make_tuple(&TwoMaps::mask, &TwoMaps::edge);
};

/// Reads the image alone, returns a mask.
struct ImageExpert : torch::nn::Module {
  using rows = rows::Images;
  struct Options {};
  explicit ImageExpert(const Options& = {}) { weight = register_parameter("weight", at::rand({3}, at::kDouble)); }
  static const at::Tensor& input(const Pair& x) { return x.image; }
  at::Tensor forward(const at::Tensor& x) { return (x * weight).sum(1, true); }
  at::Tensor weight;
};

/// Reads both, returns two maps.
struct PairExpert : torch::nn::Module {
  using rows = rows::Images;
  struct Options {};
  explicit PairExpert(const Options& = {}) { weight = register_parameter("weight", at::rand({3}, at::kDouble)); }
  TwoMaps forward(const Pair& x) {
    const at::Tensor sum = (x.image * weight + x.context).sum(1, true);
    return {sum.tanh(), sum.sigmoid()};
  }
  at::Tensor weight;
};

TEST(Distinct, ExpertsReadWhatTheyNameUnderEveryDispatcher) {
  torch::manual_seed(1);
  Distinct<ImageExpert, PairExpert, ImageExpert> experts;
  const Pair x{normal({6, 3}, 2), normal({6, 3}, 3)};
  const Routing routing = sample_routing(6, 3, 2, 4, 2);
  const auto sequential = dispatch::Sequential::run(experts, x, routing);
  const auto batched = dispatch::Batched::run(experts, x, routing);
  const auto masked = dispatch::Masked::run(experts, x, routing);
  EXPECT_TRUE(close(batched.y, sequential.y, 1e-12));
  EXPECT_TRUE(close(masked.y, sequential.y, 1e-12));
  const auto& part = std::get<1>(batched.parts);
  EXPECT_EQ(part.rows().size(0), routing.counts[1].item<int64_t>());
  EXPECT_TRUE(close(part.output.edge, std::get<1>(sequential.parts).output.edge, 1e-12));
  const auto& idle = std::get<2>(batched.parts);
  EXPECT_TRUE(idle.empty());
  EXPECT_FALSE(idle.output.defined()) << "the part of an expert without rows holds undefined tensors";
  std::get<1>(batched.parts).output.mask.sum().backward();
  EXPECT_TRUE(same(experts.get<2>().weight.grad(), at::zeros({3}, at::kDouble)))
      << "idle experts get zero gradients from any other expert's output";
}

TEST(Distinct, NamesItsExpertsByNumberInFiles) {
  const Distinct<ImageExpert, PairExpert> experts;
  const StateDict state = state_dict(experts);
  ASSERT_EQ(state.size(), 2U);
  EXPECT_EQ(state[0].first, "0.weight");
  EXPECT_EQ(state[1].first, "1.weight");
}

// Mixtures.

template <class Router, class Experts, class Select = select::TopK<2>, class Dispatch = dispatch::Batched,
          class Balance = balance::None>
using Block = Mixture<Router, Experts, Select, Balance, Dispatch>;

template <class B>
std::shared_ptr<B> block(int64_t channels, bool recompute = false) {
  typename B::Options options;
  options.router.channels = options.experts.channels = channels;
  options.recompute = recompute;
  return laws::make<B>(at::kCPU, options);
}

TEST(Mixture, ForwardIsRunOfRoute) {
  using B = Block<router::GlobalPool, Replicated<expert::Conv<>, 4>, select::TopK<2>, dispatch::Grouped, balance::Switch>;
  auto mixture = block<B>(6);
  mixture->eval();
  const at::Tensor x = normal({5, 6, 4, 4}, 1);
  const auto whole = mixture->forward(x);
  const auto parts = mixture->run(x, mixture->route(x));
  EXPECT_TRUE(same(whole.y, parts.y));
  EXPECT_TRUE(same(whole.auxiliary_loss, parts.auxiliary_loss));
  const auto alone = mixture->run(x, Routing::to(2, 5, 4));
  EXPECT_TRUE(close(alone.y, mixture->experts->stack().forward(x, layers::Stacked::Group::one(2)), 1e-12));
  EXPECT_THROW(mixture->run(x, Routing::to(2, 4, 4)), c10::Error);
  EXPECT_THROW(mixture->run(x, Routing::to(2, 5, 3)), c10::Error);
}

TEST(Mixture, EveryParameterIsReachedAndWeightsHaveTheGradientOfFiniteDifferences) {
  using B = Block<router::GlobalPool, Replicated<expert::Mlp<>, 3>, select::TopK<2>, dispatch::Grouped>;
  auto mixture = block<B>(4);
  const at::Tensor x = normal({6, 4}, 2);
  const auto loss = [&] {
    const at::Tensor y = mixture->forward(x).y;
    return (y * laws::probe(y)).sum();
  };
  loss().backward();
  for (auto& item : mixture->named_parameters()) {
    at::Tensor& p = item.value();
    ASSERT_TRUE(p.grad().defined()) << item.key();
    torch::NoGradGuard no_grad;
    const at::Tensor flat = p.view({-1});
    for (int64_t i = 0; i < p.numel(); i += 1 + p.numel() / 5) {
      const double old = flat[i].item<double>(), h = 1e-6;
      flat[i] = old + h;
      const double up = loss().item<double>();
      flat[i] = old - h;
      const double down = loss().item<double>();
      flat[i] = old;
      EXPECT_NEAR(p.grad().view({-1})[i].item<double>(), (up - down) / (2 * h), 1e-6) << item.key();
    }
  }
}

TEST(Mixture, ExpertChoiceRunsWithRowsThatNoExpertTook) {
  using B = Block<router::GlobalPool, Replicated<expert::Mlp<>, 4>, select::ExpertChoice<1>, dispatch::Grouped>;
  auto mixture = block<B>(4);
  const at::Tensor x = normal({8, 4}, 3).set_requires_grad(true);
  const auto out = mixture->forward(x);
  EXPECT_TRUE(out.y.isfinite().all().item<bool>());
  const at::Tensor untaken = out.routing.experts.lt(0).all(1);
  ASSERT_GT(untaken.sum().item<int64_t>(), 0) << "the sample must have such a row";
  EXPECT_EQ(out.y.index({untaken}).abs().max().item<double>(), 0.0);
  out.y.sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

TEST(Mixture, PositionsEqualALoopOverPositions) {
  using B = Block<router::Position, Replicated<expert::Mlp<>, 4>, select::TopK<2>, dispatch::Grouped>;
  auto mixture = block<B>(8);
  const at::Tensor x = normal({2, 8, 3, 5}, 4);
  const auto out = mixture->forward(x);
  ASSERT_EQ(out.y.sizes(), x.sizes());
  EXPECT_EQ(out.routing.rows(), 30);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t w = 0; w < 5; ++w) {
        const at::Tensor one = x.select(0, b).select(1, h).select(1, w).unsqueeze(0);
        EXPECT_TRUE(close(mixture->forward(one).y[0], out.y.select(0, b).select(1, h).select(1, w), 1e-10));
      }
}

TEST(Mixture, MaskedRoutesPositionsOverSpatialExperts) {
  using B = Block<router::Position, Replicated<expert::Conv<>, 3>, select::TopK<2>, dispatch::Masked>;
  auto mixture = block<B>(8);
  mixture->eval();
  const at::Tensor x = normal({2, 8, 4, 5}, 5);
  const auto out = mixture->forward(x);
  const at::Tensor gate = laws::dense_weights(out.routing).view({2, 4, 5, 3});
  at::Tensor expected = at::zeros_like(x);
  for (int64_t e = 0; e < 3; ++e)
    expected = expected + mixture->experts->stack().forward(x, layers::Stacked::Group::one(e)) *
                              gate.select(3, e).unsqueeze(1);
  EXPECT_TRUE(close(out.y, expected, 1e-12));
}

TEST(Mixture, CountsInTrainingOnly) {
  using B = Block<router::GlobalPool, Replicated<expert::Mlp<>, 4>, select::TopK<2>, dispatch::Batched, balance::LossFree>;
  auto mixture = block<B>(4);
  mixture->forward(normal({6, 4}, 6));
  EXPECT_EQ(mixture->balance->counts.sum().item<int64_t>(), 12);
  mixture->balance->eval();  // a stage that freezes the router does not count, whatever else trains
  mixture->forward(normal({6, 4}, 6));
  mixture->run(normal({6, 4}, 6), Routing::all(6, 4));
  EXPECT_EQ(mixture->balance->counts.sum().item<int64_t>(), 12);
  EXPECT_EQ(balance::counting(*mixture).size(), 1U);
}

TEST(Mixture, FilesHoldOneExpertAKey) {
  using B = Block<router::GlobalPool, Replicated<expert::Conv<>, 2>, select::TopK<1>, dispatch::Grouped, balance::EmaBias>;
  auto mixture = block<B>(3);
  std::vector<std::string> names;
  for (const auto& item : state_dict(*mixture)) names.push_back(item.first);
  for (const char* name : {"router.linear.weight", "experts.0.conv1.weight", "experts.1.norm2.running_var",
                           "balance.bias", "balance.usage", "balance.counts"})
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
}

TEST(Mixture, StackedAndPlainStoresLoadIntoEachOther) {
  auto stacked = laws::make<Replicated<expert::Conv<>, 3>>(at::kCPU, expert::ConvOptions{4});
  torch::manual_seed(77);
  Replicated<laws::PlainConv, 3> plain(expert::ConvOptions{4});
  plain.to(at::kDouble);
  io::load_state(plain, state_dict(*stacked));
  laws::expect_equal(laws::snapshot(plain), laws::snapshot(*stacked), 0);
  auto back = std::make_shared<Replicated<expert::Conv<>, 3>>(expert::ConvOptions{4});
  back->to(at::kDouble);
  io::load_state(*back, state_dict(plain));
  laws::expect_equal(laws::snapshot(*back), laws::snapshot(*stacked), 0);
}

TEST(Mixture, ReplicatedStepsOfTrainingAgreeBetweenBatchedAndGrouped) {
  using G = Block<router::GlobalPool, Replicated<expert::Conv<>, 4>, select::TopK<2>, dispatch::Grouped, balance::Switch>;
  using S = swap_t<G, dispatch::Batched>;
  auto grouped = block<G>(6);
  auto batched = block<S>(6);
  torch::optim::SGD a(grouped->parameters(), 0.05), b(batched->parameters(), 0.05);
  const auto step = [](auto& mixture, auto& optimizer, const at::Tensor& x) {
    optimizer.zero_grad();
    const auto out = mixture->forward(x);
    (out.y.square().mean() + out.auxiliary_loss).backward();
    optimizer.step();
  };
  for (uint64_t i = 0; i < 4; ++i) {
    step(grouped, a, normal({5, 6, 4, 4}, 80 + i));
    step(batched, b, normal({5, 6, 4, 4}, 80 + i));
  }
  laws::expect_equal(laws::snapshot(*grouped), laws::snapshot(*batched), 1e-10);
}

// Swap.

template <class... Slots>
struct Model {};

using Inner = Mixture<router::GlobalPool, Replicated<expert::Conv<>, 2>, select::TopK<1>, balance::None, dispatch::Batched>;
static_assert(std::is_same_v<swap_t<Inner, balance::Switch>,
                             Mixture<router::GlobalPool, Replicated<expert::Conv<>, 2>, select::TopK<1>,
                                     balance::Switch, dispatch::Batched>>);
static_assert(std::is_same_v<swap_t<Model<int, Model<Inner>, Inner>, dispatch::Grouped>,
                             Model<int, Model<swap_t<Inner, dispatch::Grouped>>, swap_t<Inner, dispatch::Grouped>>>,
              "every slot of the kind, at every level");
static_assert(std::is_same_v<swap_t<Inner, Replicated<expert::Mlp<>, 3>>::experts_type, Replicated<expert::Mlp<>, 3>>);
static_assert(std::is_same_v<swap_t<swap_t<Inner, select::TopK<2>>, select::TopK<1>>, Inner>, "a swap undoes a swap");

TEST(Swap, ModelOfASwappedTypeRuns) {
  auto mixture = block<swap_t<swap_t<Inner, dispatch::Masked>, balance::EmaBias>>(4);
  EXPECT_TRUE(mixture->forward(normal({3, 4, 2, 2}, 1)).y.isfinite().all().item<bool>());
}

// Monitor.

TEST(Monitor, NoiseFloorIsThatOfUniformRandomRouting) {
  const auto check = [](int64_t e, int64_t k, std::array<double, 4> expected) {
    const std::array<int64_t, 4> n{8, 16, 32, 128};
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(max_violation_noise_floor(n[i], e, k), expected[i], 0.02) << n[i];
  };
  check(4, 1, {0.77, 0.54, 0.38, 0.19});
  check(4, 2, {0.42, 0.30, 0.21, 0.11});
  check(6, 2, {0.71, 0.50, 0.36, 0.18});
}

TEST(Monitor, NoiseFloorOfManyRowsIsThatOfASimulationToo) {
  std::mt19937 random(1);
  double mean = 0;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int64_t> counts(6);
    for (int row = 0; row < 9000; ++row) ++counts[random() % 6];
    mean += max_violation(counts) / 200;
  }
  EXPECT_NEAR(max_violation_noise_floor(9000, 6, 1), mean, 0.1 * mean);
}

TEST(Monitor, ReportsWhatItObserved) {
  Monitor monitor;
  EXPECT_THROW(monitor.report(), c10::Error);
  Routing routing = Routing::given(at::tensor({0, 0, 0, 1}, at::kInt).view({4, 1}), at::ones({4, 1}), 3);
  routing.scores = at::tensor({0.5, 0.5, 0.0}).expand({4, 3});
  monitor.observe(routing, {5, 5, 5, 2});
  monitor.observe(routing, {5, 5, 5, 2});
  const auto report = monitor.report();
  EXPECT_EQ(report.counts, (std::vector<int64_t>{6, 2, 0}));
  EXPECT_EQ(report.dead, (std::vector<int64_t>{2}));
  EXPECT_EQ(report.rows, 8);
  EXPECT_NEAR(report.max_violation, 6 / (8.0 / 3) - 1, 1e-12);
  EXPECT_NEAR(report.batch_max_violation, 3 / (4.0 / 3) - 1, 1e-12);
  EXPECT_NEAR(report.entropy, std::log(2.0), 1e-6);
  EXPECT_NEAR(report.label_information, 1.0, 1e-9) << "labels that name the expert";
  EXPECT_NEAR(report.usage[0], 0.75, 1e-12);
  EXPECT_THROW(monitor.observe(routing, {1}), c10::Error);
  EXPECT_EQ(max_violation({0, 0}), 0);
  EXPECT_EQ(max_violation({8, 0, 0, 0}), 3);
  EXPECT_NEAR(normalised_mutual_information({0, 1, 0, 1}, {0, 0, 1, 1}), 0, 1e-12);
  EXPECT_EQ(normalised_mutual_information({0, 0}, {0, 1}), 0);
}

}  // namespace
