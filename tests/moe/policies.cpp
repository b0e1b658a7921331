// The policies that decide: routers, selections, balancing.
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/balance/gshard.hpp"
#include "moecod/moe/balance/importance.hpp"
#include "moecod/moe/balance/loss_free.hpp"
#include "moecod/moe/balance/marginal_entropy.hpp"
#include "moecod/moe/balance/none.hpp"
#include "moecod/moe/balance/router_z.hpp"
#include "moecod/moe/balance/row_entropy.hpp"
#include "moecod/moe/balance/smooth_bias.hpp"
#include "moecod/moe/balance/sum.hpp"
#include "moecod/moe/balance/switch.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/router/position.hpp"
#include "moecod/moe/router/pyramid.hpp"
#include "moecod/moe/select/dense.hpp"
#include "moecod/moe/select/expert_choice.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "tests/laws/balance_laws.hpp"
#include "tests/laws/router_laws.hpp"
#include "tests/laws/select_laws.hpp"

namespace moecod::laws {

using Selections = ::testing::Types<select::TopK<1>, select::TopK<2>, select::TopK<3, gate::SoftmaxTopK>,
                                    select::TopK<2, gate::Sigmoid>, select::Dense<>, select::Dense<gate::Sigmoid>,
                                    select::ExpertChoice<2>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Moecod, SelectLaws, Selections);

using Balances =
    ::testing::Types<balance::None, balance::EmaBias, balance::LossFree, balance::SmoothBias, balance::Switch,
                     balance::GShard, balance::Importance, balance::RowEntropy, balance::MarginalEntropy,
                     balance::RouterZ, balance::Sum<balance::LossFree, balance::RouterZ, balance::Switch>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Moecod, BalanceLaws, Balances);

template <>
struct Sample<router::Pyramid<>> {
  static router::Pyramid<>::Options options() { return {.channels = {4, 6, 8, 10}, .width = 8}; }
  static moecod::Pyramid input(int64_t rows, at::Device device = at::kCPU) {
    return {normal({rows, 4, 16, 16}, 3, device), normal({rows, 6, 8, 8}, 4, device), normal({rows, 8, 4, 4}, 5, device),
            normal({rows, 10, 2, 2}, 6, device)};
  }
};

using Routers = ::testing::Types<router::GlobalPool, router::Position, router::Pyramid<>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Moecod, RouterLaws, Routers);

}  // namespace moecod::laws

namespace {

using namespace moecod;
using laws::close;
using laws::normal;
using laws::same;

// Selections.

TEST(Select, TiesGoToTheLowerIndex) {
  const at::Tensor logits = at::zeros({500, 6});
  const Routing all_equal = select::TopK<3>::select(logits, {}, true);
  EXPECT_TRUE(same(all_equal.experts, at::tensor({0, 1, 2}, at::kInt).expand({500, 3})));
  const at::Tensor pairs = at::tensor({1.0F, 2.0F, 1.0F, 2.0F, 0.0F, 2.0F}).view({1, 6});
  EXPECT_TRUE(same(select::TopK<2>::select(pairs, {}, true).experts, at::tensor({1, 3}, at::kInt).view({1, 2})));
  const Routing by_column = select::ExpertChoice<1>::select(at::zeros({8, 4}), {}, true);
  EXPECT_TRUE(by_column.experts.slice(0, 0, 2).ge(0).all().item<bool>()) << "the lower rows are taken";
  EXPECT_TRUE(by_column.experts.slice(0, 2).eq(-1).all().item<bool>());
}

TEST(Select, GatesFollowTheirFormulas) {
  const at::Tensor logits = normal({5, 4}, 1).to(at::kFloat);
  const auto at_ = logits.accessor<float, 2>();
  const auto check = [&](const Routing& r, auto&& weight) {
    for (int64_t n = 0; n < 5; ++n)
      for (int64_t s = 0; s < r.slots(); ++s)
        EXPECT_NEAR(r.weights[n][s].item<double>(), weight(n, s, r), 1e-6);
  };
  const auto l = [&](int64_t n, int64_t e) { return double(at_[n][e]); };
  const auto e = [](const Routing& r, int64_t n, int64_t s) { return r.experts[n][s].item<int64_t>(); };
  check(select::TopK<2, gate::SoftmaxTopK>::select(logits, {}, true), [&](int64_t n, int64_t s, const Routing& r) {
    double sum = 0;
    for (int64_t k = 0; k < 4; ++k) sum += std::exp(l(n, k));
    return std::exp(l(n, e(r, n, s))) / sum;
  });
  check(select::TopK<2>::select(logits, {}, true), [&](int64_t n, int64_t s, const Routing& r) {
    return std::exp(l(n, e(r, n, s))) / (std::exp(l(n, e(r, n, 0))) + std::exp(l(n, e(r, n, 1))));
  });
  check(select::TopK<2, gate::Sigmoid>::select(logits, {}, true), [&](int64_t n, int64_t s, const Routing& r) {
    const auto sigmoid = [&](int64_t slot) { return 1 / (1 + std::exp(-l(n, e(r, n, slot)))); };
    return sigmoid(s) / (sigmoid(0) + sigmoid(1));
  });
}

TEST(Select, ExpertChoiceFillsEveryExpertToCapacity) {
  for (const int64_t n : {1, 3, 8, 13}) {
    const Routing r = select::ExpertChoice<2>::select(normal({n, 4}, 2), {}, true);
    const int64_t capacity = std::min<int64_t>(n, (n * 2 + 3) / 4);
    EXPECT_TRUE(r.counts.eq(capacity).all().item<bool>()) << n;
    EXPECT_EQ(r.assignments, 4 * capacity);
    const Routing evaluation = select::ExpertChoice<2>::select(normal({n, 4}, 2), {}, false);
    EXPECT_TRUE(same(evaluation.experts, select::TopK<2>::select(normal({n, 4}, 2), {}, false).experts));
  }
}

TEST(Select, DenseIsTheWholeSoftmax) {
  const at::Tensor logits = normal({7, 5}, 3);
  const Routing r = select::Dense<>::select(logits, {}, true);
  EXPECT_TRUE(close(r.weights, at::softmax(logits, 1), 1e-12));
  EXPECT_TRUE(r.counts.eq(7).all().item<bool>());
}

TEST(Select, RejectsLogitsOfTooFewExperts) {
  EXPECT_THROW(select::TopK<3>::select(at::zeros({4, 2}), {}, true), c10::Error);
  EXPECT_THROW(select::TopK<1>::select(at::zeros({4}), {}, true), c10::Error);
  EXPECT_THROW(select::ExpertChoice<3>::select(at::zeros({4, 2}), {}, true), c10::Error);
}

// Balancing: what each policy documents, beyond the laws.

template <class Balance>
Balance made(double rate_or_weight = -1) {
  typename Balance::Options options;
  options.experts = 4;
  if constexpr (requires { options.rate; }) {
    if (rate_or_weight >= 0) options.rate = rate_or_weight;
  } else if constexpr (requires { options.weight; }) {
    if (rate_or_weight >= 0) options.weight = rate_or_weight;
  }
  return Balance(options);
}

std::vector<int64_t> counts_of(const Routing& routing) {
  std::vector<int64_t> out;
  for (int64_t e = 0; e < routing.num_experts(); ++e) out.push_back(routing.counts[e].item<int64_t>());
  return out;
}

TEST(Balance, LossFreeWeightsDoNotDependOnTheBiasAndEmaBiasWeightsDo) {
  const at::Tensor logits = normal({64, 4}, 5);
  const at::Tensor bias = at::tensor({0.0, 0.01, -0.02, 0.03});
  const Routing plain = select::TopK<2>::select(logits, {}, true);
  const Routing chosen = select::TopK<2>::select(logits, bias, true);
  const Routing shifted = select::TopK<2>::select(logits + bias, {}, true);
  const at::Tensor same_choice = chosen.experts.eq(plain.experts).all(1) & shifted.experts.eq(plain.experts).all(1);
  ASSERT_GT(same_choice.sum().item<int64_t>(), 32);
  EXPECT_TRUE(same(chosen.weights.index({same_choice}), plain.weights.index({same_choice})));
  EXPECT_FALSE(at::allclose(shifted.weights.index({same_choice}), plain.weights.index({same_choice})));
  static_assert(has_selection_bias<balance::LossFree> && !has_logit_bias<balance::LossFree>);
  static_assert(has_logit_bias<balance::EmaBias> && !has_selection_bias<balance::EmaBias>);
}

TEST(Balance, LossFreeStepsAgainstTheSignOfTheError) {
  balance::LossFree::Options options{.experts = 4, .rate = 0.5, .centred = false};
  balance::LossFree plain(options);
  plain.update(at::tensor({10, 2, 4, 8}, at::kLong));  // mean 6
  EXPECT_TRUE(close(plain.bias, at::tensor({-0.5, 0.5, 0.5, -0.5}), 1e-7));
  options.centred = true;
  balance::LossFree centred(options);
  centred.update(at::tensor({9, 1, 1, 1}, at::kLong));  // mean 3: steps -0.5, 0.5, 0.5, 0.5, whose mean is 0.25
  EXPECT_TRUE(close(centred.bias, at::tensor({-0.75, 0.25, 0.25, 0.25}), 1e-7));
}

TEST(Balance, EmaBiasFollowsItsRecurrenceInFloat64) {
  auto policy = made<balance::EmaBias>();
  std::vector<double> usage(4, 0.25), bias(4, 0.0);
  for (int step = 0; step < 50; ++step) {
    const std::vector<int64_t> c{20 + step, 6, 5, 1};
    double total = 0;
    for (const int64_t n : c) total += double(n);
    for (int e = 0; e < 4; ++e) {
      usage[e] = 0.9 * usage[e] + 0.1 * double(c[e]) / total;
      bias[e] = std::clamp(bias[e] - 0.01 * (usage[e] - 0.25), -5.0, 5.0);
    }
    policy.update(at::tensor(c, at::kLong));
  }
  EXPECT_TRUE(close(policy.bias, at::tensor(bias, at::kDouble), 1e-6));
  auto limited = made<balance::EmaBias>(10);
  for (int step = 0; step < 50; ++step) limited.update(at::tensor({1, 0, 0, 0}, at::kLong));
  EXPECT_TRUE(close(limited.bias, at::tensor({-5.0, 5.0, 5.0, 5.0}), 1e-7));
}

TEST(Balance, SmoothBiasFollowsItsRecurrenceInFloat64) {
  auto policy = made<balance::SmoothBias>();
  std::vector<double> velocity(4, 0.0), bias(4, 0.0);
  const std::vector<int64_t> c{9, 5, 4, 2};  // mean 5
  for (int step = 0; step < 20; ++step) {
    double mean = 0;
    std::vector<double> d(4);
    for (int e = 0; e < 4; ++e) mean += (d[e] = 2e-3 * std::tanh(2.0 * (5 - double(c[e])) / 5)) / 4;
    for (int e = 0; e < 4; ++e) bias[e] += velocity[e] = 0.5 * velocity[e] + 0.5 * (d[e] - mean);
    policy.update(at::tensor(c, at::kLong));
  }
  EXPECT_TRUE(close(policy.bias, at::tensor(bias, at::kDouble), 1e-7));
  EXPECT_NEAR(policy.bias.sum().item<double>(), 0, 1e-7) << "centred steps do not drift";
}

/// MaxVio of the batch after `steps` updates on a router whose sigmoid or softmax scores are skewed.
double violation_after(int steps, double rate) {
  using Laws = laws::BalanceLaws<balance::LossFree>;
  torch::NoGradGuard no_grad;
  auto policy = made<balance::LossFree>(rate);
  const at::Tensor logits = Laws::skewed_logits(512);
  for (int step = 0; step < steps; ++step) {
    policy.count(Laws::route(policy, logits));
    balance::commit(policy);
  }
  return max_violation(counts_of(Laws::route(policy, logits)));
}

TEST(Balance, LossFreeBalancesASkewedRouterInAboutGapOverRateSteps) {
  EXPECT_GT(violation_after(0, 1e-3), 0.4);
  EXPECT_LE(violation_after(1000, 1e-3), 0.1);
  EXPECT_GT(violation_after(200, 1e-4), 0.2) << "a small rate is slow";
}

TEST(Balance, WindowCollectsOptimizerSteps) {
  balance::LossFree policy({.experts = 4, .window = 3});
  const at::Tensor skewed = at::tensor({8, 0, 0, 0}, at::kLong);
  for (int step = 1; step <= 6; ++step) {
    policy.commit(skewed);
    if (step == 2) policy.commit(at::zeros({4}, at::kLong));  // a skipped step is no step
    const bool moved = policy.bias.abs().max().item<double>() > 0;
    EXPECT_EQ(moved, step >= 3) << step;
  }
  balance::LossFree twice({.experts = 4});
  twice.update(skewed * 3);
  twice.update(skewed * 3);
  EXPECT_TRUE(same(policy.bias, twice.bias)) << "six steps are two windows";
  EXPECT_EQ(policy.window_counts.sum().item<int64_t>(), 0);
  EXPECT_THROW(policy.commit(at::zeros({3}, at::kLong)), c10::Error);
  EXPECT_THROW(policy.commit(at::zeros({4})), c10::Error);
  EXPECT_THROW(balance::LossFree({.experts = 4, .window = 0}), c10::Error);
}

TEST(Balance, SumAddsLossesAndKeepsEachBias) {
  using Both = balance::Sum<balance::LossFree, balance::RouterZ, balance::Switch>;
  auto sum = made<Both>();
  const at::Tensor logits = laws::BalanceLaws<Both>::skewed_logits();
  const Routing routing = laws::BalanceLaws<Both>::route(sum, logits);
  EXPECT_TRUE(close(sum.loss(routing), made<balance::RouterZ>().loss(routing) + made<balance::Switch>().loss(routing),
                    1e-7));
  sum.count(routing);
  balance::commit(sum);
  auto alone = made<balance::LossFree>();
  alone.update(routing.counts);
  EXPECT_TRUE(same(sum.selection_bias(), alone.bias));
  static_assert(!has_logit_bias<Both>);
  static_assert(!has_auxiliary_loss<balance::Sum<balance::LossFree>> && !counts_load<balance::Sum<balance::Switch>>);
}

TEST(Balance, LossesFollowTheirFormulasInFloat64) {
  const at::Tensor logits = normal({32, 4}, 8);
  const Routing r = [&] {
    Routing out = select::TopK<2>::select(logits, {}, true);
    out.logits = logits;
    return out;
  }();
  const at::Tensor p = at::softmax(logits, 1), share = r.counts.to(at::kDouble) / 64.0, mean = p.mean(0);
  EXPECT_TRUE(close(made<balance::Switch>(1).loss(r), 4 * (share * mean).sum(), 1e-12));
  const at::Tensor first = at::one_hot(logits.argmax(1), 4).sum(0).to(at::kDouble) / 32.0;
  EXPECT_TRUE(close(made<balance::GShard>(1).loss(r), (first * mean).sum() / 4, 1e-12));
  const at::Tensor importance = laws::dense_weights(r).sum(0);
  EXPECT_TRUE(close(made<balance::Importance>(1).loss(r),
                    importance.var(0, /*unbiased=*/false) / importance.mean().square(), 1e-12));
  EXPECT_TRUE(close(made<balance::RowEntropy>(1).loss(r), -(p * p.log()).sum(1).mean(), 1e-12));
  EXPECT_TRUE(close(made<balance::MarginalEntropy>(1).loss(r), std::log(4.0) + (mean * mean.log()).sum(), 1e-12));
  EXPECT_TRUE(close(made<balance::RouterZ>(1).loss(r), logits.exp().sum(1).log().square().mean(), 1e-12));
}

/// Trains a linear router of 8 features, skewed at the start, by plain gradient descent on one auxiliary loss alone.
struct Trained {
  double violation_before, violation, row_entropy_before, row_entropy, size_before, size;
};

template <class Balance>
Trained train_router(double rate, int steps = 150) {
  using Laws = laws::BalanceLaws<Balance>;
  const auto policy = made<Balance>(1.0);
  const at::Tensor x = at::cat({normal({256, 8}, 9), at::ones({256, 1}, at::kDouble)}, 1);
  at::Tensor w = normal({9, 4}, 10) * 0.4;
  w.select(0, 8).copy_(at::tensor({1.5, 0.5, -0.5, -1.5}, at::kDouble));
  w.set_requires_grad(true);
  const auto look = [&](double& violation, double& entropy, double& size) {
    torch::NoGradGuard no_grad;
    const Routing r = Laws::route(policy, x.matmul(w));
    violation = max_violation(counts_of(r));
    entropy = made<balance::RowEntropy>(1).loss(r).template item<double>();
    size = made<balance::RouterZ>(1).loss(r).template item<double>();
  };
  Trained out{};
  look(out.violation_before, out.row_entropy_before, out.size_before);
  for (int step = 0; step < steps; ++step) {
    const at::Tensor gradient = torch::autograd::grad({policy.loss(Laws::route(policy, x.matmul(w)))}, {w})[0];
    torch::NoGradGuard no_grad;
    w.sub_(gradient * rate);
  }
  look(out.violation, out.row_entropy, out.size);
  return out;
}

TEST(Balance, AuxiliaryLossesReachTheirEffect) {
  for (const auto& [name, t] : {std::pair{"Switch", train_router<balance::Switch>(0.6)},
                                std::pair{"GShard", train_router<balance::GShard>(6.0)},
                                std::pair{"Importance", train_router<balance::Importance>(1.0)},
                                std::pair{"MarginalEntropy", train_router<balance::MarginalEntropy>(1.0)}}) {
    EXPECT_GT(t.violation_before, 0.5) << name;
    EXPECT_LT(t.violation, 0.4 * t.violation_before) << name;
  }
  const Trained sharp = train_router<balance::RowEntropy>(1.0);
  EXPECT_LT(sharp.row_entropy, 0.3 * sharp.row_entropy_before);
  const Trained small = train_router<balance::RouterZ>(0.1);
  EXPECT_LT(small.size, 0.5 * small.size_before);
}

TEST(Router, GlobalPoolClampsItsLogits) {
  router::GlobalPool router({.experts = 3, .channels = 8, .limit = 0.25});
  const at::Tensor logits = router.forward(normal({16, 8, 4, 4}, 4).to(at::kFloat) * 100);
  EXPECT_LE(logits.abs().max().item<double>(), 0.25);
  EXPECT_THROW(router.forward(at::zeros({2, 7, 4, 4})), c10::Error);
}

}  // namespace
