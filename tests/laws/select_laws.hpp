#pragma once
#include "moecod/moe/concepts.hpp"
#include "tests/laws/support.hpp"

namespace moecod::laws {

/// What a selection must do with logits [N, E], in training and in evaluation.
template <class Select>
struct SelectLaws : ::testing::Test {
  static_assert(names_kind<Select, kind::select> && selects<Select> && counts_assignments<Select>);
  static constexpr int64_t rows = 12, experts = 6;

  static at::Tensor logits(uint64_t seed = 31) { return normal({rows, experts}, seed) * 1.5; }
  static at::Tensor no_bias() { return {}; }
};

TYPED_TEST_SUITE_P(SelectLaws);

TYPED_TEST_P(SelectLaws, ReturnsACompleteRouting) {
  for (const bool training : {true, false}) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const Routing r = TypeParam::select(this->logits().to(dtype), this->no_bias(), training);
      ASSERT_EQ(r.experts.sizes(), r.weights.sizes());
      EXPECT_EQ(r.rows(), this->rows);
      EXPECT_EQ(r.num_experts(), this->experts);
      EXPECT_EQ(r.scores.sizes(), this->logits().sizes());
      EXPECT_EQ(r.experts.scalar_type(), at::kInt);
      EXPECT_EQ(r.weights.scalar_type(), dtype);
      EXPECT_EQ(r.scores.scalar_type(), dtype);
      EXPECT_EQ(r.counts.scalar_type(), at::kLong);
      EXPECT_TRUE(r.weights.isfinite().all().template item<bool>());
      EXPECT_TRUE(same(r.counts, count_assignments(r.experts, this->experts)));
      EXPECT_EQ(r.experts.ge(0).sum().template item<int64_t>(), r.assignments) << "assignments: the used slots";
      EXPECT_EQ(r.weights.masked_select(r.experts.lt(0)).abs().sum().template item<double>(), 0.0);
      const at::Tensor chosen = at::one_hot(r.experts.to(at::kLong) + 1, this->experts + 1).sum(1).slice(1, 1);
      EXPECT_LE(chosen.max().template item<int64_t>(), 1) << "a row must not choose an expert twice";
    }
  }
}

TYPED_TEST_P(SelectLaws, AssignmentsAreKnownOnTheHost) {
  for (const int64_t n : {1, 2, 5, 12}) {
    const Routing r = TypeParam::select(this->logits().slice(0, 0, n), this->no_bias(), true);
    EXPECT_EQ(r.assignments, TypeParam::assignments(n, this->experts)) << n << " rows";
  }
}

TYPED_TEST_P(SelectLaws, PlanSortsTheAssignmentsByExpert) {
  for (const bool training : {true, false}) {
    const Routing r = TypeParam::select(this->logits(), this->no_bias(), training);
    const Plan plan(r);
    ASSERT_EQ(plan.offsets.size(0), this->experts + 1);
    EXPECT_EQ(plan.offsets[0].template item<int64_t>(), 0);
    EXPECT_EQ(plan.offsets[-1].template item<int64_t>(), r.assignments);
    EXPECT_TRUE(plan.offsets.diff().ge(0).all().template item<bool>());
    EXPECT_TRUE(same(plan.offsets.diff().to(at::kLong), r.counts));
    const at::Tensor slots = plan.order.to(at::kLong), of = r.experts.flatten().index_select(0, slots).to(at::kLong);
    const at::Tensor key = of * r.experts.numel() + slots;
    EXPECT_TRUE(key.diff().gt(0).all().template item<bool>()) << "sorted by expert, ties by slot";
    const at::Tensor used = r.experts.flatten().ge(0).nonzero().flatten();
    const at::Tensor there = plan.position.flatten().index_select(0, used).to(at::kLong);
    EXPECT_TRUE(same(slots.index_select(0, there), used)) << "position is the inverse of order";
    EXPECT_TRUE(plan.position.masked_select(r.experts.lt(0)).eq(-1).all().template item<bool>());
  }
}

TYPED_TEST_P(SelectLaws, PermutingTheExpertsPermutesIndicesOnly) {
  const at::Tensor to = at::tensor({3, 0, 5, 1, 4, 2}, at::kLong);
  for (const bool training : {true, false}) {
    const Routing r = TypeParam::select(this->logits(), this->no_bias(), training);
    const Routing p = TypeParam::select(this->logits().index_select(1, to), this->no_bias(), training);
    EXPECT_TRUE(close(dense_weights(p), dense_weights(r).index_select(1, to), 1e-12));
    EXPECT_TRUE(same(p.counts, r.counts.index_select(0, to)));
  }
}

TYPED_TEST_P(SelectLaws, RowsAreIndependentInEvaluation) {
  const Routing all = TypeParam::select(this->logits(), this->no_bias(), false);
  for (int64_t n = 0; n < this->rows; ++n) {
    const Routing one = TypeParam::select(this->logits().slice(0, n, n + 1), this->no_bias(), false);
    EXPECT_TRUE(same(one.experts, all.experts.slice(0, n, n + 1)));
    EXPECT_TRUE(close(one.weights, all.weights.slice(0, n, n + 1), 1e-12));
  }
}

TYPED_TEST_P(SelectLaws, SelectionBiasMovesTheChoiceOnly) {
  for (const bool training : {true, false}) {
    const Routing plain = TypeParam::select(this->logits(), this->no_bias(), training);
    const Routing zero = TypeParam::select(this->logits(), at::zeros({this->experts}), training);
    EXPECT_TRUE(same(zero.experts, plain.experts));
    EXPECT_TRUE(same(zero.weights, plain.weights));
    const at::Tensor bias = at::tensor({0.0, 0.02, -0.05, 0.08, 0.0, -0.02});
    const Routing biased = TypeParam::select(this->logits(), bias, training);
    EXPECT_TRUE(same(biased.scores, plain.scores)) << "scores are those of the logits";
    const at::Tensor w = dense_weights(plain), b = dense_weights(biased);
    const at::Tensor unmoved = w.ne(0).eq(b.ne(0)).all(1);
    ASSERT_GT(unmoved.sum().template item<int64_t>(), 0);
    EXPECT_TRUE(close(b.index({unmoved}), w.index({unmoved}), 1e-12)) << "equal choices have equal weights";
  }
}

TYPED_TEST_P(SelectLaws, WeightsHaveTheGradientOfFiniteDifferences) {
  const auto value = [](const at::Tensor& logits, bool training) {
    const Routing r = TypeParam::select(logits, {}, training);
    const at::Tensor w = dense_weights(r);
    return (w * probe(w)).sum();
  };
  for (const bool training : {true, false}) {
    const at::Tensor logits = this->logits().slice(0, 0, 5).clone().set_requires_grad(true);
    value(logits, training).backward();
    ASSERT_TRUE(logits.grad().defined());
    EXPECT_GT(logits.grad().abs().max().template item<double>(), 1e-3) << "the router needs a gradient";
    const at::Tensor numeric = at::zeros_like(logits);
    const double h = 1e-6;
    for (int64_t i = 0; i < logits.numel(); ++i) {
      const at::Tensor up = logits.detach().clone(), down = logits.detach().clone();
      up.view({-1})[i] += h;
      down.view({-1})[i] -= h;
      numeric.view({-1})[i] = (value(up, training) - value(down, training)) / (2 * h);
    }
    EXPECT_TRUE(close(logits.grad(), numeric, 1e-7));
  }
}

TYPED_TEST_P(SelectLaws, RepeatsBitwise) {
  const Routing a = TypeParam::select(this->logits(), this->no_bias(), true);
  const Routing b = TypeParam::select(this->logits(), this->no_bias(), true);
  EXPECT_TRUE(same(a.experts, b.experts));
  EXPECT_TRUE(same(a.weights, b.weights));
}

TYPED_TEST_P(SelectLaws, EqualsTheCpu_CUDA) {
  MOECOD_SKIP_WITHOUT_CUDA();
  for (const bool training : {true, false}) {
    const Routing cpu = TypeParam::select(this->logits(), this->no_bias(), training);
    const Routing gpu = TypeParam::select(this->logits().to(at::kCUDA), this->no_bias(), training);
    EXPECT_TRUE(same(gpu.experts.cpu(), cpu.experts));
    EXPECT_TRUE(close(gpu.weights, cpu.weights, 1e-12));
  }
}

REGISTER_TYPED_TEST_SUITE_P(SelectLaws, ReturnsACompleteRouting, AssignmentsAreKnownOnTheHost,
                            PlanSortsTheAssignmentsByExpert, PermutingTheExpertsPermutesIndicesOnly,
                            RowsAreIndependentInEvaluation, SelectionBiasMovesTheChoiceOnly,
                            WeightsHaveTheGradientOfFiniteDifferences, RepeatsBitwise, EqualsTheCpu_CUDA);

}  // namespace moecod::laws
