// Layers against LibTorch's own modules and operations, in float64.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "moecod/expert/swiglu.hpp"
#include "moecod/kernel/band.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/layers/gradient_format.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/norm.hpp"
#include "moecod/layers/pool.hpp"
#include "moecod/layers/resize.hpp"
#include "tests/laws/support.hpp"

namespace {

using namespace moecod;
using laws::close;
using laws::normal;
using laws::probe;
using laws::same;

at::Tensor gradient(const at::Tensor& y, const at::Tensor& x) {
  return torch::autograd::grad({(y * probe(y)).sum()}, {x})[0];
}

/// Sizes (in, out) of each side: up, down, odd ratios, one sample.
constexpr std::array<std::array<int64_t, 4>, 6> sizes{
    {{4, 6, 8, 12}, {9, 7, 4, 3}, {5, 5, 11, 2}, {1, 3, 4, 5}, {6, 4, 1, 1}, {7, 3, 7, 9}}};

TEST(Resize, ForwardAndBackwardAreLibTorchs) {
  for (const auto& [h, w, height, width] : sizes)
    for (const bool corners : {false, true}) {
      const at::Tensor x = normal({2, 3, h, w}, 1).set_requires_grad(true);
      const auto options = torch::nn::functional::InterpolateFuncOptions()
                               .size(std::vector<int64_t>{height, width})
                               .mode(torch::kBilinear)
                               .align_corners(corners);
      const at::Tensor reference = torch::nn::functional::interpolate(x, options);
      const at::Tensor y = layers::resize(x, height, width, corners);
      EXPECT_TRUE(close(y, reference, 1e-12));
      EXPECT_TRUE(close(gradient(y, x), gradient(reference, x), 1e-12));
      // The path of the backward on CUDA: two products with the matrices that make the forward.
      const at::Tensor rows = layers::detail::bilinear_matrix(h, height, corners).to(x.options());
      const at::Tensor columns = layers::detail::bilinear_matrix(w, width, corners).to(x.options());
      EXPECT_TRUE(close(rows.matmul(x.detach()).matmul(columns.t()), reference, 1e-12));
      EXPECT_TRUE(close(rows.t().matmul(probe(y).matmul(columns)), gradient(reference, x), 1e-12));
    }
}

TEST(Resize, SameSizeIsTheSameTensorAndFactorsRoundDown) {
  const at::Tensor x = normal({1, 1, 5, 7}, 2);
  EXPECT_TRUE(layers::resize(x, 5, 7).is_same(x));
  EXPECT_EQ(layers::scale(x, 0.5).sizes(), at::IntArrayRef({1, 1, 2, 3}));
  EXPECT_EQ(layers::resize_like(x, normal({1, 4, 3, 2}, 3)).sizes(), at::IntArrayRef({1, 1, 3, 2}));
}

TEST(Pool, ForwardAndBackwardAreLibTorchs) {
  for (const auto& [h, w, height, width] : sizes) {
    const at::Tensor x = normal({2, 3, h, w}, 4).set_requires_grad(true);
    const at::Tensor average = at::adaptive_avg_pool2d(x, {height, width});
    EXPECT_TRUE(close(layers::average_pool(x, height, width), average, 1e-12));
    EXPECT_TRUE(close(gradient(layers::average_pool(x, height, width), x), gradient(average, x), 1e-12));
    const at::Tensor rows = layers::detail::average_matrix(h, height).to(x.options());
    const at::Tensor columns = layers::detail::average_matrix(w, width).to(x.options());
    EXPECT_TRUE(close(rows.matmul(x.detach()).matmul(columns.t()), average, 1e-12));
    const at::Tensor largest = std::get<0>(at::adaptive_max_pool2d(x, {height, width}));
    EXPECT_TRUE(close(layers::max_pool(x, height, width), largest, 0));
    EXPECT_TRUE(close(gradient(layers::max_pool(x, height, width), x), gradient(largest, x), 1e-12));
  }
}

/// The gradient of a mean is one number a map, and would come without a format of its own.
TEST(GradientFormat, FollowsTheMap) {
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor x = normal({2, 6, 3, 4}, 3).contiguous(last).set_requires_grad(true);
  const auto gradient_of = [&](const at::Tensor& y) {
    return torch::autograd::grad({(y.mean({2, 3}) * normal({2, 6}, 4)).sum()}, {x})[0];
  };
  const at::Tensor got = gradient_of(layers::gradient_in_own_format(x));
  EXPECT_TRUE(got.is_contiguous(last));
  EXPECT_TRUE(close(got, gradient_of(x), 0));
  const at::Tensor pixel = layers::in_format(at::ones({2, 6, 1, 1}), last);
  EXPECT_EQ(pixel.suggest_memory_format(), last);
}

/// The walk over bands that the CUDA kernel makes, sample by sample, on the host.
TEST(ResizeAndPool, BandsGiveTheGradients) {
  namespace detail = layers::detail;
  struct Kind {
    const char* name;
    detail::MakeTensor band;
    bool variant, indexed;
  };
  for (const Kind& kind : {Kind{"resize", detail::bilinear_band, false, false},
                           Kind{"resize, corners on corners", detail::bilinear_band, true, false},
                           Kind{"average_pool", detail::average_band, false, false},
                           Kind{"max_pool", detail::window_band, false, true}})
    for (const auto& [h, w, height, width] : {std::array<int64_t, 4>{4, 6, 8, 12}, {9, 7, 4, 3}, {5, 5, 11, 2}, {1, 3, 4, 5},
                                              {6, 4, 1, 1}, {7, 3, 7, 9}, {14, 14, 112, 100}, {40, 30, 9, 7}}) {
      SCOPED_TRACE(::testing::Message() << kind.name << " " << h << " x " << w << " to " << height << " x " << width);
      const at::Tensor x = normal({1, 1, h, w}, 9).set_requires_grad(true);
      at::Tensor y, index;
      if (kind.indexed) {
        std::tie(y, index) = at::adaptive_max_pool2d(x, {height, width});
      } else if (kind.band == detail::average_band) {
        y = at::adaptive_avg_pool2d(x, {height, width});
      } else {
        y = at::upsample_bilinear2d(x, {height, width}, kind.variant);
      }
      const at::Tensor seed = probe(y), exact = torch::autograd::grad({y}, {x}, {seed})[0];
      const at::Tensor rows = kind.band(h, height, kind.variant), columns = kind.band(w, width, kind.variant);
      const auto g = seed.accessor<double, 4>();
      for (const int lanes : {1, 4, 32})
        for (int64_t r = 0; r < h; ++r)
          for (int64_t c = 0; c < w; ++c) {
            float sum = 0;
            const auto add = [&](float weight, int i, int j) {
              EXPECT_TRUE(i >= 0 && i < height && j >= 0 && j < width);
              if (kind.indexed && index[0][0][i][j].item<int64_t>() != r * w + c) return;
              sum += weight * static_cast<float>(g[0][0][i][j]);
            };
            for (int lane = 0; lane < lanes; ++lane)
              kernel::share_of_taps({rows.const_data_ptr<float>() + r, int(h), int(rows.size(0)) - 1},
                                    {columns.const_data_ptr<float>() + c, int(w), int(columns.size(0)) - 1}, lane, lanes,
                                    add);
            ASSERT_NEAR(sum, exact[0][0][r][c].item<double>(), 2e-5) << "sample " << r << ", " << c << ", lanes " << lanes;
          }
    }
}

TEST(ResizeAndPool, BackwardsRepeatBitwiseAndEqualTheCpu_CUDA) {
  MOECOD_SKIP_WITHOUT_CUDA();
  for (const auto& [h, w, height, width] : sizes) {
    const auto all = [&, height = height, width = width](const at::Tensor& x) {
      return std::array{gradient(layers::resize(x, height, width), x), gradient(layers::average_pool(x, height, width), x),
                        gradient(layers::max_pool(x, height, width), x)};
    };
    const at::Tensor host = normal({2, 3, h, w}, 5);
    const at::Tensor cpu = host.clone().set_requires_grad(true), gpu = host.to(at::kCUDA).set_requires_grad(true);
    const auto a = all(cpu), b = all(gpu), c = all(gpu);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(close(b[i], a[i], 1e-10));
      EXPECT_TRUE(same(b[i], c[i]));
    }
  }
}

TEST(Conv2d, EqualsLibTorchs) {
  const layers::Conv2dOptions options{.in = 4, .out = 6, .kernel = {3, 5}, .stride = {2, 1}, .dilation = {1, 2}, .groups = 2};
  auto conv = laws::make<layers::Conv2d<>>(at::kCPU, options);
  torch::nn::Conv2d reference(torch::nn::Conv2dOptions(4, 6, {3, 5}).stride({2, 1}).padding({1, 4}).dilation({1, 2}).groups(2));
  reference->to(at::kDouble);
  torch::NoGradGuard no_grad;
  reference->weight.copy_(conv->weight);
  reference->bias.copy_(conv->bias);
  const at::Tensor x = normal({2, 4, 9, 11}, 6);
  EXPECT_TRUE(close(conv->forward(x), reference->forward(x), 1e-12));
  const double bound = 1 / std::sqrt(2 * 3 * 5.0);
  EXPECT_LE(conv->weight.abs().max().item<double>(), bound);
  EXPECT_GT(conv->weight.abs().max().item<double>(), 0.8 * bound);
  EXPECT_THROW(layers::Conv2d<>({.in = 3, .out = 4, .groups = 2}), c10::Error);
}

TEST(LinearAndLayerNorm, EqualLibTorchs) {
  torch::manual_seed(1);
  layers::Linear<> linear(5, 3);
  layers::LayerNorm<> norm(5);
  norm.weight.data().uniform_();
  const at::Tensor x = normal({2, 7, 5}, 7).to(at::kFloat);
  EXPECT_TRUE(close(linear.forward(x), x.matmul(linear.weight.t()) + linear.bias, 1e-6));
  EXPECT_TRUE(close(norm.forward(x), at::layer_norm(x, {5}, norm.weight, norm.bias), 1e-6));
}

at::Tensor state_of(const layers::BatchNorm2d<>& norm) {
  return at::cat({norm.running_mean, norm.running_var, norm.num_batches_tracked.view({1}).to(at::kDouble)});
}

TEST(Linear, ActivatesItsInputFirst) {
  layers::Linear<> layer(4, 6);
  layer.to(at::kDouble);
  const at::Tensor x = normal({3, 5, 8}, 40), first = x.slice(-1, 0, 4), second = x.slice(-1, 4);
  EXPECT_TRUE(close(layer.forward(first, {}, layers::Activation::gelu), layer.forward(at::gelu(first)), 1e-12));
  EXPECT_TRUE(close(layer.forward(x, {}, layers::Activation::swiglu),
                    layer.forward(first * at::sigmoid(first) * second), 1e-12));
  const at::Tensor h = layer.forward(first), g = h.slice(-1, 0, 3);
  EXPECT_TRUE(close(layer.forward_swiglu(first), g * at::sigmoid(g) * h.slice(-1, 3), 1e-12));
  EXPECT_THROW(layers::activation_named("relu"), c10::Error);
}

TEST(SwiGlu, IsItsFormulaWithAndWithoutGradients) {
  expert::SwiGlu<> expert({.channels = 4, .hidden = 3});
  expert.to(at::kDouble);
  const at::Tensor x = normal({7, 4}, 41), up = expert.named_parameters()["up.weight"];
  const at::Tensor g = x.matmul(up.slice(0, 0, 3).t()), u = x.matmul(up.slice(0, 3).t());
  const at::Tensor y = (g * at::sigmoid(g) * u).matmul(expert.named_parameters()["down.weight"].t());
  EXPECT_TRUE(close(expert.forward(x), y, 1e-12));
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(close(expert.forward(x), y, 1e-12));
}

TEST(BatchNorm, EqualsLibTorchsInTrainingAndEvaluation) {
  auto norm = laws::make<layers::BatchNorm2d<>>(at::kCPU, int64_t{3});
  torch::nn::BatchNorm2d reference(3);
  reference->to(at::kDouble);
  for (uint64_t step = 0; step < 3; ++step) {
    const at::Tensor x = normal({4, 3, 5, 5}, 8 + step) * 2 + 1;
    EXPECT_TRUE(close(norm->forward(x), reference->forward(x), 1e-12));
  }
  EXPECT_TRUE(close(norm->running_mean, reference->running_mean, 1e-12));
  EXPECT_TRUE(close(norm->running_var, reference->running_var, 1e-12));
  EXPECT_TRUE(same(norm->num_batches_tracked, at::scalar_tensor(3, at::kLong)));
  norm->eval();
  reference->eval();
  const at::Tensor before = state_of(*norm), x = normal({2, 3, 2, 2}, 12);
  EXPECT_TRUE(close(norm->forward(x), reference->forward(x), 1e-12));
  EXPECT_TRUE(same(state_of(*norm), before));
}

TEST(BatchNorm, OneValueAChannelUsesTheRunningStatistics) {
  auto norm = laws::make<layers::BatchNorm2d<>>(at::kCPU, int64_t{3});
  norm->forward(normal({8, 3, 2, 2}, 13));
  const at::Tensor before = state_of(*norm), x = normal({1, 3, 1, 1}, 14);
  const at::Tensor y = norm->forward(x);
  EXPECT_TRUE(same(state_of(*norm), before));
  norm->eval();
  EXPECT_TRUE(close(y, norm->forward(x), 1e-12));
}

TEST(BatchNorm, StackedMovesTheStatisticsOfExpertsWithRowsOnce) {
  layers::BatchNorm2d<layers::Stacked> stack(2, layers::Stacked{3});
  stack.to(at::kDouble);
  const at::Tensor x = normal({6, 2, 3, 3}, 15);
  const at::Tensor y = stack.forward(x, layers::Stacked::Group::sorted(at::tensor({0, 4, 4, 6}, at::kInt)));
  EXPECT_TRUE(same(stack.num_batches_tracked, at::tensor({1, 0, 1}, at::kLong)));
  EXPECT_TRUE(same(stack.running_mean[1], at::zeros({2}, at::kDouble)));
  for (const auto& [e, begin, end] : {std::array<int64_t, 3>{0, 0, 4}, std::array<int64_t, 3>{2, 4, 6}}) {
    layers::BatchNorm2d<> one(2);
    one.to(at::kDouble);
    EXPECT_TRUE(close(one.forward(x.slice(0, begin, end)), y.slice(0, begin, end), 1e-12));
    EXPECT_TRUE(close(stack.running_var[e], one.running_var, 1e-12));
  }
}

TEST(BatchNorm, CountOfBatchesStaysInt64) {
  layers::BatchNorm2d<> norm(2);
  for (int i = 0; i < 3; ++i) norm.forward(at::ones({2, 2}));
  norm.to(at::kBFloat16);
  norm.to(at::Device(at::kCPU), at::kDouble);
  norm.to(at::Device(at::kCPU));
  EXPECT_TRUE(same(norm.num_batches_tracked, at::scalar_tensor(3, at::kLong)));
  EXPECT_TRUE(norm.named_buffers()["num_batches_tracked"].is_same(norm.num_batches_tracked));
  EXPECT_EQ(norm.running_mean.scalar_type(), at::kDouble);
}

TEST(BatchNorm, RecomputingDoesNotMove) {
  auto norm = laws::make<layers::BatchNorm2d<>>(at::kCPU, int64_t{3});
  const at::Tensor x = normal({4, 3, 2, 2}, 16), first = norm->forward(x), before = state_of(*norm);
  recomputing() = true;
  const at::Tensor again = norm->forward(x);
  recomputing() = false;
  EXPECT_TRUE(same(again, first));
  EXPECT_TRUE(same(state_of(*norm), before));
}

TEST(Stacked, LayersEqualSingleOnesWithGradients) {
  layers::ConvNorm<layers::Stacked> stack(layers::Conv2dOptions::square(2, 3, 3), layers::After::relu, layers::Stacked{3});
  stack.to(at::kDouble);
  torch::manual_seed(2);
  for (auto& p : stack.parameters()) p.data().uniform_(-1, 1);
  const at::Tensor x = normal({5, 2, 4, 4}, 17).set_requires_grad(true);
  const at::Tensor y = stack.forward(x, layers::Stacked::Group::sorted(at::tensor({0, 2, 2, 5}, at::kInt)));
  y.square().sum().backward();
  for (const auto& [e, begin, end] : {std::array<int64_t, 3>{0, 0, 2}, std::array<int64_t, 3>{2, 2, 5}}) {
    layers::ConvNorm<> one(layers::Conv2dOptions::square(2, 3, 3));
    one.to(at::kDouble);
    one.conv->weight.data().copy_(stack.conv->weight[e]);
    one.norm->weight.data().copy_(stack.norm->weight[e]);
    one.norm->bias.data().copy_(stack.norm->bias[e]);
    const at::Tensor z = one.forward(x.detach().slice(0, begin, end));
    EXPECT_TRUE(close(z, y.slice(0, begin, end), 1e-12));
    z.square().sum().backward();
    EXPECT_TRUE(close(stack.conv->weight.grad()[e], one.conv->weight.grad(), 1e-10));
    EXPECT_TRUE(close(stack.norm->bias.grad()[e], one.norm->bias.grad(), 1e-10));
  }
  EXPECT_EQ(stack.conv->weight.grad()[1].abs().max().item<double>(), 0.0);
  EXPECT_THROW(stack.forward(x), c10::Error) << "a stacked layer must be told whose rows it gets";
}

}  // namespace
