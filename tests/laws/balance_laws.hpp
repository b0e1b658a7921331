#pragma once
#include "moecod/expert/mlp.hpp"
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "tests/laws/support.hpp"

namespace moecod::laws {

/// What a balancing policy must do, whichever of logit_bias, selection_bias, loss and update it has.
template <class Balance>
struct BalanceLaws : ::testing::Test {
  static constexpr int64_t experts = 4, rows = 24, channels = 8;
  using Select = select::TopK<2>;
  using Block = Mixture<router::GlobalPool, Replicated<expert::Mlp<>, experts>, Select, Balance, dispatch::Batched>;

  static std::shared_ptr<Block> block(bool recompute = false) {
    torch::manual_seed(41);
    typename Block::Options options;
    options.balance = Sample<Balance>::options();
    options.router.channels = options.experts.channels = channels;
    options.recompute = recompute;
    return std::make_shared<Block>(options);
  }
  static at::Tensor input(uint64_t seed = 42) { return normal({rows, channels}, seed).to(at::kFloat); }

  static Balance policy() {
    typename Balance::Options options = Sample<Balance>::options();
    options.experts = experts;
    return Balance(options);
  }

  /// A routing to 2 of 4 experts from logits that favour the first ones.
  static Routing skewed(const at::Tensor& biased, const at::Tensor& selection_bias, const at::Tensor& logits) {
    Routing routing = Select::select(biased, selection_bias, true);
    routing.logits = logits;
    return routing;
  }
  static at::Tensor skewed_logits(int64_t n = 256) {
    return normal({n, experts}, 43).to(at::kFloat) + at::tensor({1.0, 0.5, 0.0, -0.5}, at::kFloat);
  }

  /// The routing that the policy's biases make of these logits.
  static Routing route(const Balance& balance, const at::Tensor& logits) {
    at::Tensor biased = logits, selection;
    if constexpr (has_logit_bias<Balance>) biased = logits + balance.logit_bias();
    if constexpr (has_selection_bias<Balance>) selection = balance.selection_bias();
    return skewed(biased, selection, logits);
  }

  static double violation(const Routing& routing) {
    std::vector<int64_t> counts;
    for (int64_t e = 0; e < experts; ++e) counts.push_back(routing.counts[e].item<int64_t>());
    return max_violation(counts);
  }
};

TYPED_TEST_SUITE_P(BalanceLaws);

TYPED_TEST_P(BalanceLaws, MicroBatchesUpdateBitwiseAsOneBatch) {
  auto whole = this->block(), parts = this->block();
  for (uint64_t step = 0; step < 5; ++step) {
    const at::Tensor x = this->input(50 + step);
    whole->route(x);
    for (int64_t n = 0; n < this->rows; n += 8) parts->route(x.slice(0, n, n + 8));
    balance::commit(*whole);
    balance::commit(*parts);
  }
  expect_equal(snapshot(*parts->balance), snapshot(*whole->balance), 0);
  if constexpr (counts_load<TypeParam>) {
    bool moved = false;
    const Named fresh = snapshot(*this->block()->balance), now = snapshot(*whole->balance);
    for (std::size_t i = 0; i < now.size(); ++i) moved = moved || !at::equal(fresh[i].second, now[i].second);
    EXPECT_TRUE(moved) << "a policy that counts must change something";
  }
}

TYPED_TEST_P(BalanceLaws, ZeroCountsAndSkippedStepsChangeNothing) {
  auto block = this->block();
  for (uint64_t step = 0; step < 3; ++step) {
    block->route(this->input(60 + step));
    balance::commit(*block);
  }
  const Named before = snapshot(*block->balance);
  balance::commit(*block);
  expect_equal(snapshot(*block->balance), before, 0);
  block->route(this->input(64));
  balance::commit(*block, {}, at::zeros({}));
  expect_equal(snapshot(*block->balance), before, 0);
}

TYPED_TEST_P(BalanceLaws, CountsAreSummedOverRanks) {
  auto one = this->block(), both = this->block();
  const at::Tensor x = this->input();
  one->route(x.slice(0, 0, 12));
  Routing other = this->block()->route(x.slice(0, 12));
  both->route(x);
  balance::commit(*one, [&](at::Tensor& counts) { counts.add_(other.counts.repeat({counts.size(0) / 4})); });
  balance::commit(*both);
  expect_equal(snapshot(*one->balance), snapshot(*both->balance), 0);
}

TYPED_TEST_P(BalanceLaws, EvaluationLeavesTheStateAlone) {
  auto block = this->block();
  block->route(this->input());
  balance::commit(*block);
  block->eval();
  const Named before = snapshot(*block);
  block->forward(this->input(70));
  expect_equal(snapshot(*block), before, 0);
}

TYPED_TEST_P(BalanceLaws, RecomputationLeavesTheStateAlone) {
  std::vector<Named> states;
  for (const bool recompute : {false, true}) {
    auto block = this->block(recompute);
    auto out = block->forward(this->input());
    at::Tensor loss = out.y.square().sum();
    if constexpr (has_auxiliary_loss<TypeParam>) loss = loss + out.auxiliary_loss;
    loss.backward();
    states.push_back(snapshot(*block));
    for (const auto& item : block->named_parameters()) states.back().emplace_back(item.key(), item.value().grad());
  }
  expect_equal(states[1], states[0], 0);
}

TYPED_TEST_P(BalanceLaws, ConversionMovesTheModelNotTheState) {
  auto block = this->block();
  block->route(this->input());
  balance::commit(*block);
  const Named before = snapshot(*block->balance);
  block->to(at::kBFloat16);
  expect_equal(snapshot(*block->balance), before, 0);
  block->to(at::Device(at::kCPU), at::kHalf);
  expect_equal(snapshot(*block->balance), before, 0);
  EXPECT_EQ(block->experts->parameters().front().scalar_type(), at::kHalf);
  EXPECT_TRUE(block->balance->parameters().empty()) << "a policy's state is not trained";
  for (const auto& item : block->balance->named_buffers())
    EXPECT_TRUE(item.value().scalar_type() == at::kFloat || item.value().scalar_type() == at::kLong) << item.key();
}

TYPED_TEST_P(BalanceLaws, StateChangesInPlace) {
  auto block = this->block();
  std::vector<const void*> before;
  for (const at::Tensor& buffer : block->balance->buffers()) before.push_back(buffer.const_data_ptr());
  block->route(this->input());
  balance::commit(*block);
  std::size_t i = 0;
  for (const at::Tensor& buffer : block->balance->buffers()) EXPECT_EQ(buffer.const_data_ptr(), before.at(i++));

  if constexpr (counts_load<TypeParam>) {
    TypeParam moved = this->policy(), again = this->policy();
    for (int step = 0; step < 20; ++step) {
      moved.count(this->route(moved, this->skewed_logits()));
      balance::commit(moved);
    }
    const StateDict from = state_dict(moved), to = state_dict(again);
    const at::NoGradGuard no_grad;
    for (std::size_t b = 0; b < from.size(); ++b) at::Tensor(to[b].second).copy_(from[b].second);
    const at::Tensor even = at::zeros({16, 4});
    EXPECT_TRUE(close(dense_weights(this->route(again, even)), dense_weights(this->route(moved, even)), 0))
        << "what the policy does is not in its saved state: register its tensors as buffers, and change them in place "
           "(copy_, add_), never by assignment";
  }
}

TYPED_TEST_P(BalanceLaws, BiasesFollowAPermutationOfTheExperts) {
  if constexpr (counts_load<TypeParam>) {
    TypeParam plain = this->policy(), permuted = this->policy();
    const at::Tensor to = at::tensor({2, 0, 3, 1}, at::kLong);
    for (int step = 0; step < 4; ++step) {
      plain.count(this->route(plain, this->skewed_logits()));
      permuted.count(this->route(permuted, this->skewed_logits().index_select(1, to)));
      balance::commit(plain);
      balance::commit(permuted);
    }
    const Routing a = this->route(plain, this->skewed_logits());
    const Routing b = this->route(permuted, this->skewed_logits().index_select(1, to));
    EXPECT_TRUE(close(dense_weights(b), dense_weights(a).index_select(1, to), 1e-6));
  } else {
    GTEST_SKIP() << "the policy has no state";
  }
}

TYPED_TEST_P(BalanceLaws, BiasesHaveOneFloat32ValueAnExpert) {
  const TypeParam balance = this->policy();
  const auto check = [&](const at::Tensor& bias) {
    EXPECT_EQ(bias.sizes(), at::IntArrayRef({this->experts}));
    EXPECT_EQ(bias.scalar_type(), at::kFloat);
    EXPECT_FALSE(bias.requires_grad());
  };
  if constexpr (has_logit_bias<TypeParam>) check(balance.logit_bias());
  if constexpr (has_selection_bias<TypeParam>) check(balance.selection_bias());
}

TYPED_TEST_P(BalanceLaws, BiasesBalanceASkewedRouter) {
  if constexpr (has_logit_bias<TypeParam> || has_selection_bias<TypeParam>) {
    torch::NoGradGuard no_grad;
    TypeParam balance = this->policy();
    const at::Tensor logits = this->skewed_logits();
    const double before = this->violation(this->route(balance, logits));
    for (int step = 0; step < 1500; ++step) {
      balance.count(this->route(balance, logits));
      balance::commit(balance);
    }
    EXPECT_GT(before, 0.4);
    EXPECT_LE(this->violation(this->route(balance, logits)), 0.1);
  } else {
    GTEST_SKIP() << "the policy has no bias";
  }
}

TYPED_TEST_P(BalanceLaws, AuxiliaryLossExistsOnlyIfThePolicyHasOne) {
  using Output = decltype(this->block()->forward(this->input()));
  constexpr bool member = requires(Output out) { out.auxiliary_loss; };
  EXPECT_EQ(member, has_auxiliary_loss<TypeParam>);
}

TYPED_TEST_P(BalanceLaws, AuxiliaryLossIsAFiniteScalarThatTheRouterCanLower) {
  if constexpr (has_auxiliary_loss<TypeParam>) {
    const TypeParam balance = this->policy();
    at::Tensor logits = this->skewed_logits().set_requires_grad(true);
    std::vector<double> values;
    for (int step = 0; step < 100; ++step) {
      const at::Tensor loss = balance.loss(this->route(balance, logits));
      ASSERT_EQ(loss.dim(), 0);
      values.push_back(loss.template item<double>());
      const at::Tensor gradient = torch::autograd::grad({loss}, {logits})[0];
      ASSERT_TRUE(gradient.isfinite().all().template item<bool>());
      ASSERT_GT(gradient.norm().template item<double>(), 0.0);
      logits = (logits - 0.5 * gradient / gradient.norm()).detach().set_requires_grad(true);
    }
    EXPECT_LT(values.back(), values.front());
    const at::Tensor extreme = (this->skewed_logits() * 30).set_requires_grad(true);
    const at::Tensor loss = balance.loss(this->route(balance, extreme));
    loss.backward();
    EXPECT_TRUE(loss.isfinite().template item<bool>());
    EXPECT_TRUE(extreme.grad().isfinite().all().template item<bool>());
  } else {
    GTEST_SKIP() << "the policy has no loss";
  }
}

TYPED_TEST_P(BalanceLaws, AuxiliaryLossDoesNotDependOnTheOrderOfExpertsOrRows) {
  if constexpr (has_auxiliary_loss<TypeParam>) {
    const TypeParam balance = this->policy();
    const at::Tensor logits = this->skewed_logits().to(at::kDouble);
    const at::Tensor loss = balance.loss(this->route(balance, logits));
    const at::Tensor to = at::tensor({2, 0, 3, 1}, at::kLong);
    EXPECT_TRUE(close(balance.loss(this->route(balance, logits.index_select(1, to))), loss, 1e-7));
    EXPECT_TRUE(close(balance.loss(this->route(balance, logits.flip(0))), loss, 1e-7));
  } else {
    GTEST_SKIP() << "the policy has no loss";
  }
}

TYPED_TEST_P(BalanceLaws, GivenRoutingHasNoLossToPush) {
  auto block = this->block();
  auto out = block->run(this->input(), Routing::all(this->rows, this->experts));
  if constexpr (has_auxiliary_loss<TypeParam>) {
    EXPECT_EQ(out.auxiliary_loss.template item<double>(), 0.0);
  } else {
    EXPECT_TRUE(out.y.defined());
  }
}

REGISTER_TYPED_TEST_SUITE_P(BalanceLaws, MicroBatchesUpdateBitwiseAsOneBatch, ZeroCountsAndSkippedStepsChangeNothing,
                            CountsAreSummedOverRanks, EvaluationLeavesTheStateAlone, RecomputationLeavesTheStateAlone,
                            ConversionMovesTheModelNotTheState, StateChangesInPlace,
                            BiasesFollowAPermutationOfTheExperts, BiasesHaveOneFloat32ValueAnExpert,
                            BiasesBalanceASkewedRouter, AuxiliaryLossExistsOnlyIfThePolicyHasOne,
                            AuxiliaryLossIsAFiniteScalarThatTheRouterCanLower,
                            AuxiliaryLossDoesNotDependOnTheOrderOfExpertsOrRows, GivenRoutingHasNoLossToPush);

}  // namespace moecod::laws
