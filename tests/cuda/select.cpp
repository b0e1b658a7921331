// moecod::select against LibTorch's operations on the same device, bit for bit where it chooses, and float64.
#include "moecod/moe/select/top_k.hpp"

#include <cmath>

#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

struct Weighted {
  Routing routing;
  at::Tensor d_logits;
};

/// Routing and the gradient of a fixed function of its weights and scores.
template <class Select>
Weighted with_gradient(const at::Tensor& logits, bool through_scores, bool through_weights, Select&& select) {
  const at::Tensor x = logits.detach().clone().set_requires_grad(true);
  Weighted out{select(x), {}};
  const auto coefficients = [](const at::Tensor& t) { return at::arange(t.numel(), t.options()).view_as(t).sin(); };
  at::Tensor loss = at::zeros({}, logits.options());
  if (through_scores) loss = loss + (out.routing.scores * coefficients(out.routing.scores)).sum();
  if (through_weights) loss = loss + (out.routing.weights * coefficients(out.routing.weights)).sum();
  if (logits.numel() > 0) out.d_logits = torch::autograd::grad({loss}, {x}).front();
  return out;
}

Routing by_operator(const at::Tensor& logits, const at::Tensor& bias, int64_t k, const char* gate) {
  Routing r;
  const auto selection_bias = bias.defined() ? std::optional(bias) : std::nullopt;
  std::tie(r.scores, r.experts, r.weights, r.counts) =
      operators::find<operators::Select>()->call(logits, std::nullopt, selection_bias, k, gate);
  return r;
}

template <class Gate>
void compare(const at::Tensor& logits, const at::Tensor& bias, int64_t k) {
  SCOPED_TRACE(::testing::Message() << Gate::fused << " N " << logits.size(0) << " E " << logits.size(1) << " K " << k
                                    << (bias.defined() ? " with" : " without") << " bias");
  const Routing want = select::detail::top_k<Gate>(logits, bias, k), got = by_operator(logits, bias, k, Gate::fused);
  EXPECT_TRUE(at::equal(got.scores, want.scores)) << relative_error(got.scores, want.scores);
  ASSERT_TRUE(at::equal(got.experts, want.experts)) << got.experts.ne(want.experts).sum().template item<int64_t>();
  EXPECT_TRUE(at::equal(got.counts, want.counts));
  EXPECT_LE(relative_error(got.weights, want.weights), 1e-6);
  if (logits.size(0) == 0 || logits.size(0) > 70000) return;
  // The same choice in float64: scores decide, so a bias that leaves no near tie is not needed.
  const at::Tensor wide = logits.to(at::kDouble), chosen = want.experts.to(at::kLong);
  const auto in_double = [&](const at::Tensor& x) {
    Routing r;
    r.scores = Gate::scores(x);
    r.weights = Gate::weights(r.scores.gather(1, chosen), x.gather(1, chosen));
    return r;
  };
  for (const auto& [scores, weights] : {std::pair{true, true}, {true, false}, {false, true}}) {
    const auto exact = with_gradient(wide, scores, weights, in_double);
    const auto kernel = with_gradient(logits, scores, weights,
                                      [&](const at::Tensor& x) { return by_operator(x, bias, k, Gate::fused); });
    EXPECT_LE(relative_error(kernel.routing.weights, exact.routing.weights), 1e-6);
    const double norm = exact.d_logits.norm().template item<double>();
    const double error = (kernel.d_logits - exact.d_logits).norm().template item<double>();
    EXPECT_LE(error, 2e-6 * norm + 1e-7 * std::sqrt(double(logits.numel())))
        << "d_logits, through scores " << scores << ", weights " << weights;
  }
}

void compare_gates(const at::Tensor& logits, const at::Tensor& bias, int64_t k) {
  compare<gate::SoftmaxTopK>(logits, bias, k);
  compare<gate::TopKSoftmax>(logits, bias, k);
  compare<gate::Sigmoid>(logits, bias, k);
}

TEST(SelectOperator, EqualsLibTorchForAllSizes_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (int64_t experts : {1, 2, 3, 6, 8, 9, 16, 17, 32, 33, 64, 100, 128, 200, 256})
    for (int64_t k : {1, 2, 3, 5, 8}) {
      if (k > experts) continue;
      const at::Tensor logits = at::randn({517, experts}, on(at::kFloat)) * 2;
      compare_gates(logits, {}, k);
      compare_gates(logits, at::randn({experts}, on(at::kFloat)) * 0.1, k);
    }
}

TEST(SelectOperator, EqualsLibTorchForAllRows_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(2);
  for (int64_t rows : {0, 1, 2, 31, 257, 4095, 65536, 1000003})
    for (Load load : {Load::uniform, Load::zipf, Load::one}) {
      compare_gates(logits_of(load, rows, 6), {}, 2);
      if (rows <= 65536) compare_gates(logits_of(load, rows, 64), {}, 8);
    }
}

TEST(SelectOperator, TiesGoToTheLowerIndex_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(3);
  for (int64_t experts : {6, 40, 256})
    for (int64_t k : {2, 4}) {
      compare_gates(at::zeros({100, experts}, on(at::kFloat)), {}, k);
      compare_gates(at::randint(0, 3, {3000, experts}, on(at::kFloat)), {}, k);
      compare_gates(at::randint(0, 3, {3000, experts}, on(at::kFloat)),
                    at::randint(0, 2, {experts}, on(at::kFloat)), k);
    }
}

TEST(SelectOperator, ExtremeLogits_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(4);
  at::Tensor logits = at::randn({64, 12}, on(at::kFloat)) * 200;
  compare_gates(logits, {}, 3);
  logits.slice(1, 3, 8).fill_(-std::numeric_limits<float>::infinity());
  compare<gate::SoftmaxTopK>(logits, {}, 2);
  // Not a number: the choice stays within range, whatever it is.
  logits.select(0, 5).fill_(std::numeric_limits<float>::quiet_NaN());
  const Routing got = by_operator(logits, {}, 3, "softmax_top_k");
  const Routing want = select::detail::top_k<gate::SoftmaxTopK>(logits, {}, 3);
  EXPECT_TRUE(at::equal(got.experts, want.experts));
  EXPECT_TRUE(got.weights[5].isnan().all().item<bool>());
}

TEST(SelectOperator, LogitBiasMovesTheWeightsToo_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(5);
  const at::Tensor logits = at::randn({1000, 20}, on(at::kFloat)), bias = at::randn({20}, on(at::kFloat));
  const Routing got = select::TopK<4>::select(logits, {}, true, bias);
  const Routing want = select::detail::top_k<gate::TopKSoftmax>(logits + bias, {}, 4);
  EXPECT_TRUE(at::equal(got.experts, want.experts));
  EXPECT_TRUE(at::equal(got.scores, want.scores));
  EXPECT_LE(relative_error(got.weights, want.weights), 1e-6);
}

TEST(SelectOperator, RepeatsBitForBit_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(6);
  for (int64_t experts : {6, 256}) {
    const at::Tensor logits = logits_of(Load::zipf, 30011, experts);
    expect_repeats([&] {
      const auto out = with_gradient(logits, true, true,
                                     [&](const at::Tensor& x) { return by_operator(x, {}, 4, "sigmoid"); });
      return Tensors{out.routing.scores, out.routing.experts, out.routing.weights, out.routing.counts, out.d_logits};
    });
  }
}

TEST(SelectOperator, CapturesInAGraph_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(7);
  at::Tensor logits = at::randn({5000, 16}, on(at::kFloat));
  expect_captures(
      [&] {
        const Routing r = select::TopK<2>::select(logits, {}, true);
        return Tensors{r.scores, r.experts, r.weights, r.counts};
      },
      [&](int) { logits.normal_(); });
}

TEST(SelectOperator, WhatNoKernelTakesFallsBackAndIsCounted_CUDA) {
  MOECOD_NEEDS_CUDA();
  const int64_t before = operators::fallbacks();
  compare<gate::SoftmaxTopK>(at::randn({50, 300}, on(at::kFloat)), {}, 2);
  EXPECT_GT(operators::fallbacks(), before);
  const int64_t then = operators::fallbacks();
  select::TopK<2>::select(at::randn({50, 6}, on(at::kDouble)), {}, true);
  select::TopK<9>::select(at::randn({50, 16}, on(at::kFloat)), {}, true);
  EXPECT_EQ(operators::fallbacks(), then + 2);
  select::TopK<2>::select(at::randn({50, 6}, on(at::kFloat)), {}, true);
  EXPECT_EQ(operators::fallbacks(), then + 2);
}

}  // namespace
}  // namespace moecod::on_cuda
