// Layers under autocast to bfloat16 against themselves in float32.
#include "moecod/backbone/any.hpp"
#include "moecod/backbone/concept.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/norm.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

AutocastGuard bfloat16() {
  return AutocastGuard({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true});
}

/// Rounding to bfloat16 is all that autocast costs a layer normalisation.
TEST(LayerNorm, StaysInBfloat16UnderAutocast_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  layers::LayerNorm<> norm(320);
  {
    const torch::NoGradGuard no_grad;
    norm.weight.normal_();
    norm.bias.normal_();
  }
  norm.to(at::kCUDA);
  const at::Tensor x = (at::randn({4, 50, 320}, on(at::kFloat)) * 3 + 1).set_requires_grad(true);
  const at::Tensor seed = at::randn_like(x), wide = norm.forward(x);
  const auto exact = torch::autograd::grad({wide}, {x, norm.weight, norm.bias}, {seed});
  const AutocastGuard autocast = bfloat16();
  const at::Tensor y = norm.forward(x);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LE(relative_error(y, wide), 1e-2);
  const auto got = torch::autograd::grad({y}, {x, norm.weight, norm.bias}, {seed.to(at::kBFloat16)});
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], exact[i]), 1e-2) << "gradient " << i;
}

TEST(LayerNorm, LeavesFloat64AloneUnderAutocast_CUDA) {
  MOECOD_NEEDS_CUDA();
  layers::LayerNorm<> norm(32);
  norm.to(at::kCUDA, at::kDouble);
  const at::Tensor x = at::randn({4, 32}, on(at::kDouble)), right = norm.forward(x);
  const AutocastGuard autocast = bfloat16();
  EXPECT_TRUE(at::equal(norm.forward(x), right));
}

/// A single linear layer in training runs by the operator, for its bias's gradient.
TEST(Linear, InBfloat16IsNearFloat32_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  layers::Linear<> linear(64, 136);
  linear.to(at::kCUDA);
  const at::Tensor x = at::randn({3, 700, 64}, on(at::kFloat)).set_requires_grad(true), wide = linear.forward(x);
  const at::Tensor seed = at::randn_like(wide);
  const auto exact = torch::autograd::grad({wide}, {x, linear.weight, linear.bias}, {seed});
  const AutocastGuard autocast = bfloat16();
  const int64_t before = operators::fallbacks();
  const at::Tensor y = linear.forward(x);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LE(relative_error(y, wide), 1e-2);
  const auto got = torch::autograd::grad({y}, {x, linear.weight, linear.bias}, {seed.to(at::kBFloat16)});
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], exact[i]), 1e-2) << "gradient " << i;
  EXPECT_EQ(operators::fallbacks(), before);
  {
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(at::equal(linear.forward(x), y)) << "without gradients the same product";
  }
}

/// Widths beyond the kernel's are LibTorch's, without a fallback of the operator.
TEST(LayerNorm, LeavesWideRowsToLibTorch_CUDA) {
  MOECOD_NEEDS_CUDA();
  layers::LayerNorm<> norm(1536);
  norm.to(at::kCUDA);
  const at::Tensor x = at::randn({2, 5, 1536}, on(at::kFloat)), wide = norm.forward(x);
  const AutocastGuard autocast = bfloat16();
  const int64_t before = operators::fallbacks();
  EXPECT_LE(relative_error(norm.forward(x), wide), 1e-2);
  EXPECT_EQ(operators::fallbacks(), before);
}

/// What rounding each layer and residual sum to bfloat16 adds up to over a backbone.
TEST(PvtV2, InBfloat16IsNearFloat32_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const auto backbone = backbone::create<backbone::Any>({.name = "pvt_v2_b1"});
  backbone->to(at::kCUDA);
  backbone->eval();
  const at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({2, 3, 96, 128}, on(at::kFloat));
  const Pyramid wide = (*backbone)(images);
  const AutocastGuard autocast = bfloat16();
  const Pyramid levels = (*backbone)(images);
  const std::vector<at::Tensor> exact = tree::leaves(wide), got = tree::leaves(levels);
  ASSERT_EQ(got.size(), 4U);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].scalar_type(), at::kBFloat16);
    EXPECT_LE(relative_error(got[i], exact[i]), 3e-2) << "level " << i;
  }
}

/// A layer that was left elsewhere is an error, not an illegal address.
TEST(Layers, NameTheDeviceThatIsWrong_CUDA) {
  MOECOD_NEEDS_CUDA();
  layers::ConvNorm<> layer(layers::Conv2dOptions::square(16, 16, 3));
  const AutocastGuard autocast = bfloat16();
  EXPECT_THROW(layer.forward(at::zeros({1, 16, 4, 4}, on(at::kBFloat16))), c10::Error);
}

}  // namespace
}  // namespace moecod::on_cuda
