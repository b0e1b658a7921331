// moecod::grouped_depthwise_conv2d against float64, expert by expert; the stacked layer that uses it.
#include <optional>

#include "moecod/layers/conv.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

using Pair = std::array<int64_t, 2>;

struct Case {
  std::vector<int64_t> images;  // of each expert
  int64_t channels;
  Pair size, kernel{3, 3}, padding{1, 1}, dilation{1, 1};
  bool gelu = false;
};

/// y, d_x, d_weight and, where there is a bias, d_bias.
template <class Forward>
Tensors results(const Forward& forward, const Tensors& in) {
  Tensors leaves;
  for (const at::Tensor& t : in) leaves.push_back(t.detach().clone().set_requires_grad(true));
  const at::Tensor y = forward(leaves[0], leaves[1], leaves.size() > 2 ? std::optional(leaves[2]) : std::nullopt);
  const at::Tensor number = at::arange(y.numel(), y.options().dtype(at::kDouble)).view(y.sizes());
  const at::Tensor seed = number.mul(0.37).sin().to(at::kBFloat16).to(y.scalar_type());
  Tensors all{y};
  for (const at::Tensor& grad : torch::autograd::grad({y}, leaves, {seed})) all.push_back(grad);
  return all;
}

Tensors by_operator(const Case& c, const Tensors& in) {
  return results(
      [&](const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b) {
        return operators::find<operators::GroupedDepthwiseConv2d>()->call(x, w, b, offsets_of(c.images), c.padding,
                                                                          c.dilation, c.gelu);
      },
      in);
}

/// In float64, on the CPU.
Tensors one_by_one(const Case& c, const Tensors& in) {
  Tensors wide;
  for (const at::Tensor& t : in) wide.push_back(t.cpu().to(at::kDouble));
  return results(
      [&](const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b) {
        Tensors out;
        int64_t begin = 0;
        for (std::size_t e = 0; e < c.images.size(); begin += c.images[e++])
          if (c.images[e] > 0)
            out.push_back(at::conv2d(x.slice(0, begin, begin + c.images[e]), w[int64_t(e)],
                                     b ? (*b)[int64_t(e)] : at::Tensor(), 1, c.padding, c.dilation, c.channels));
        return c.gelu ? at::gelu(at::cat(out)) : at::cat(out);
      },
      wide);
}

Tensors inputs(const Case& c, at::ScalarType type, bool bias) {
  const auto experts = static_cast<int64_t>(c.images.size());
  const at::Tensor x = at::randn({ends_of(c.images).back(), c.channels, c.size[0], c.size[1]}, on(at::kFloat));
  Tensors in{x.to(type).contiguous(channels_last),
             at::randn({experts, c.channels, 1, c.kernel[0], c.kernel[1]}, on(at::kFloat)).to(type)};
  if (bias) in.push_back(at::randn({experts, c.channels}, on(at::kFloat)).to(type));
  return in;
}

const std::vector<Case> cases{
    {{3, 0, 2}, 64, {14, 14}},
    {{1, 1, 1, 1}, 320, {7, 9}},
    {{0, 0, 5}, 35, {13, 6}},
    {{2, 3}, 8, {20, 20}, {7, 7}, {3, 3}},
    {{2, 3}, 24, {20, 17}, {5, 3}, {4, 2}, {2, 2}},
    {{2, 1}, 16, {9, 9}, {3, 3}, {0, 0}},
    {{0, 40}, 512, {14, 14}},
    {{3, 0, 2}, 64, {14, 14}, {3, 3}, {1, 1}, {1, 1}, /*gelu=*/true},
    {{1, 2}, 132, {37, 18}, {3, 3}, {1, 1}, {1, 1}, true},  // three strips, a chunk of channels that is not full
    {{1, 1}, 4, {1, 1}, {3, 3}, {1, 1}, {1, 1}, true},
    {{2, 1}, 12, {17, 3}},
    {{2, 3}, 8, {20, 20}, {7, 7}, {3, 3}, {1, 1}, true},
    {{0, 0, 5}, 35, {13, 6}, {3, 3}, {1, 1}, {1, 1}, true},
};

TEST(DepthwiseOperator, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const Case& c : cases)
      for (const bool bias : {false, true}) {
        SCOPED_TRACE(::testing::Message() << type << " " << at::IntArrayRef(c.images) << " images of " << c.channels << " x "
                                          << at::IntArrayRef(c.size) << ", kernel " << at::IntArrayRef(c.kernel)
                                          << ", bias " << bias << ", gelu " << c.gelu);
        const Tensors in = inputs(c, type, bias);
        const int64_t before = operators::fallbacks();
        const Tensors got = by_operator(c, in);
        EXPECT_EQ(operators::fallbacks(), before) << "the kernels take these";
        const Tensors exact = one_by_one(c, in);
        const double tolerance = type == at::kFloat ? 2e-6 : type == at::kHalf ? 1e-3 : 6e-3;
        const char* names[] = {"y", "d_x", "d_weight", "d_bias"};
        for (std::size_t i = 0; i < got.size(); ++i) {
          EXPECT_EQ(got[i].sizes(), exact[i].sizes()) << names[i];
          EXPECT_LE(relative_error(got[i].cpu(), exact[i]), tolerance) << names[i];
        }
        EXPECT_TRUE(got[0].is_contiguous(channels_last));
        for (std::size_t e = 0; e < c.images.size(); ++e)
          if (c.images[e] == 0) {
            EXPECT_EQ(got[2][int64_t(e)].abs().max().item<float>(), 0) << "an idle expert's gradient";
          }
      }
}

TEST(DepthwiseOperator, WideFiltersAndFloat64RunLibTorchsOperations_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  at::globalContext().setAllowTF32CuDNN(false);
  const Case wide{{2, 3}, 8, {20, 20}, {9, 9}, {4, 4}};
  for (const auto& [c, type] : {std::pair{wide, at::kFloat}, std::pair{cases[0], at::kDouble}}) {
    const Tensors in = inputs(c, type, /*bias=*/true);
    const int64_t before = operators::fallbacks();
    const Tensors got = by_operator(c, in), exact = one_by_one(c, in);
    EXPECT_EQ(operators::fallbacks(), before + 2) << "forward and backward";
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i].cpu(), exact[i]), 1e-5);
  }
  at::globalContext().setAllowTF32CuDNN(true);
}

TEST(DepthwiseOperator, RepeatsWaitsNeverAndIsCaptured_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const Case c{{0, 0, 0}, 64, {28, 28}};
  const at::Tensor x = at::randn({9, 64, 28, 28}, on(at::kBFloat16)).contiguous(channels_last).set_requires_grad(true);
  const at::Tensor w = at::randn({3, 64, 1, 3, 3}, on(at::kBFloat16)).set_requires_grad(true);
  const at::Tensor b = at::randn({3, 64}, on(at::kBFloat16)).set_requires_grad(true);
  at::Tensor offsets = offsets_of({4, 0, 5});
  const at::Tensor seed = at::randn({9, 64, 28, 28}, on(at::kBFloat16)).contiguous(channels_last);
  for (const bool gelu : {false, true}) {
    const auto step = [&] {
      const at::Tensor y =
        operators::find<operators::GroupedDepthwiseConv2d>()->call(x, w, b, offsets, c.padding, c.dilation, gelu);
      const auto grads = torch::autograd::grad({y}, {x, w, b}, {seed});
      return Tensors{y, grads[0], grads[1], grads[2]};
    };
    expect_repeats(step);
    expect_waits_never(step);
    const std::vector<std::vector<int64_t>> routings{{9, 0, 0}, {1, 7, 1}, {0, 0, 9}, {3, 3, 3}};
    expect_captures(step, [&](int i) { offsets.copy_(offsets_of(routings[std::size_t(i)])); });
  }
}

/// Gradients that nobody wants are not computed, and the others are the same.
TEST(DepthwiseOperator, GivesOnlyTheGradientsAskedFor_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const Tensors in = inputs({{2, 3}, 16, {9, 9}}, at::kBFloat16, /*bias=*/true);
  const at::Tensor offsets = offsets_of({2, 3}), seed = at::randn_like(in[0]);
  const std::array<int64_t, 2> one{1, 1};
  const auto gradient = [&](std::size_t alone) {
    Tensors leaves;
    for (std::size_t i = 0; i < in.size(); ++i)
      leaves.push_back(in[i].detach().clone().set_requires_grad(alone > 2 || i == alone));
    const at::Tensor y =
        operators::find<operators::GroupedDepthwiseConv2d>()->call(leaves[0], leaves[1], leaves[2], offsets, one, one, true);
    return torch::autograd::grad({y}, alone > 2 ? leaves : Tensors{leaves[alone]}, {seed});
  };
  const auto all = gradient(3);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LE(relative_error(gradient(i)[0], all[i]), i == 0 ? 0 : 1e-2) << i;
}

/// What the layer keeps for the backward pass of convolution and GELU is its input alone.
TEST(DepthwiseOperator, RunsSingleLayersWithGeluInOnePass_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  layers::Conv2d<> conv({.in = 64, .out = 64, .groups = 64});
  conv.to(at::kCUDA);
  const at::Tensor x = at::randn({3, 64, 56, 56}, on(at::kFloat)).contiguous(channels_last).set_requires_grad(true);
  const at::Tensor seed = at::randn_like(x), wide = conv.forward_gelu(x);
  const auto exact = torch::autograd::grad({wide}, {x, conv.weight, conv.bias}, {seed});
  const AutocastGuard autocast({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true});
  const at::Tensor half = x.detach().to(at::kBFloat16).set_requires_grad(true);
  conv.forward_gelu(half);
  const int64_t before = allocated();
  const at::Tensor y = conv.forward_gelu(half);
  EXPECT_LE(allocated() - before, y.numel() * 2 + 4096);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LE(relative_error(y, wide), 1e-2);
  const auto got = torch::autograd::grad({y}, {half, conv.weight, conv.bias}, {seed.to(at::kBFloat16)});
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], exact[i]), 1e-2) << "gradient " << i;
}

TEST(DepthwiseOperator, RunsStackedLayers_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const layers::Conv2dOptions options{.in = 16, .out = 16, .groups = 16};
  layers::Conv2d<layers::Stacked> stacked(options, layers::Stacked{3});
  {
    const torch::NoGradGuard no_grad;
    stacked.weight.normal_();
    stacked.bias.normal_();
  }
  stacked.to(at::kCUDA);
  const at::Tensor x = at::randn({5, 16, 12, 10}, on(at::kFloat)), offsets = offsets_of({2, 0, 3});
  const auto group = layers::Stacked::Group::sorted(offsets);
  ASSERT_TRUE(stacked.runs_grouped(x, group));
  const auto right = [&](int64_t begin, int64_t end, const at::Tensor& w, const at::Tensor& b) {
    return at::conv2d(x.slice(0, begin, end), w, b, 1, 1, 1, 16);
  };
  EXPECT_TRUE(close(stacked.forward(x, group), at::cat({right(0, 2, stacked.weight[0], stacked.bias[0]),
                                                        right(2, 5, stacked.weight[2], stacked.bias[2])}), 1e-4));
}

}  // namespace
}  // namespace moecod::on_cuda
