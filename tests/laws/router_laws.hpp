#pragma once
#include "moecod/moe/concepts.hpp"
#include "tests/laws/support.hpp"

namespace moecod::laws {

/// What a router must do with its input; `Sample` makes its options and input.
template <class Router>
struct RouterLaws : ::testing::Test {
  static constexpr int64_t experts = 5, rows = 6;

  static std::shared_ptr<Router> router(at::Device device = at::kCPU) {
    auto options = Sample<Router>::options();
    options.experts = experts;
    return make<Router>(device, options);
  }
  static auto input(at::Device device = at::kCPU) { return Sample<Router>::input(rows, device); }
  template <class X>
  static X slice(const X& x, int64_t begin, int64_t end) {
    return tree::map([&](const at::Tensor& leaf) { return leaf.slice(0, begin, end); }, x);
  }
};

TYPED_TEST_SUITE_P(RouterLaws);

TYPED_TEST_P(RouterLaws, GivesOneLogitARowAndExpert) {
  const at::Tensor logits = this->router()->forward(this->input());
  ASSERT_EQ(logits.dim(), 2);
  EXPECT_EQ(logits.size(0), this->rows);
  EXPECT_EQ(logits.size(1), this->experts);
  EXPECT_EQ(logits.scalar_type(), at::kDouble) << "a float64 router gives float64 logits";
  EXPECT_TRUE(logits.isfinite().all().template item<bool>());
}

TYPED_TEST_P(RouterLaws, RowsAreIndependentInEvaluation) {
  auto router = this->router();
  router->eval();
  const auto x = this->input();
  const at::Tensor all = router->forward(x);
  for (int64_t n = 0; n < this->rows; ++n)
    EXPECT_TRUE(close(router->forward(this->slice(x, n, n + 1)), all.slice(0, n, n + 1), 1e-10)) << "row " << n;
}

TYPED_TEST_P(RouterLaws, EveryParameterGetsAGradient) {
  auto router = this->router();
  const at::Tensor logits = router->forward(this->input());
  (logits * probe(logits)).sum().backward();
  for (const auto& item : router->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().template item<bool>()) << item.key();
  }
}

TYPED_TEST_P(RouterLaws, RowsThatDifferGetDifferentLogits) {
  const at::Tensor logits = this->router()->forward(this->input());
  EXPECT_FALSE(at::allclose(logits[0], logits[1])) << "a router must look at its input";
}

TYPED_TEST_P(RouterLaws, EqualsTheCpu_CUDA) {
  MOECOD_SKIP_WITHOUT_CUDA();
  auto cpu = this->router(), gpu = this->router(at::kCUDA);
  cpu->eval();
  gpu->eval();
  EXPECT_TRUE(close(gpu->forward(this->input(at::kCUDA)), cpu->forward(this->input()), 1e-9));
}

REGISTER_TYPED_TEST_SUITE_P(RouterLaws, GivesOneLogitARowAndExpert, RowsAreIndependentInEvaluation,
                            EveryParameterGetsAGradient, RowsThatDifferGetDifferentLogits, EqualsTheCpu_CUDA);

}  // namespace moecod::laws
