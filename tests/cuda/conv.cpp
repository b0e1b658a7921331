// moecod::grouped_conv2d and moecod::grouped_batch_norm against float64, expert by expert; the experts made of them.
#include "moecod/expert/conv.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

using Pair = std::array<int64_t, 2>;

/// y, d_x, d_weight.
Tensors results(const at::Tensor& y, const Tensors& inputs) {
  const at::Tensor number = at::arange(y.numel(), y.options().dtype(at::kDouble)).view(y.sizes());
  const at::Tensor weight = number.mul(0.37).sin().to(at::kBFloat16).to(y.scalar_type());
  Tensors out{y};
  for (const at::Tensor& grad : torch::autograd::grad({(y * weight).sum()}, inputs)) out.push_back(grad);
  return out;
}

struct Case {
  std::vector<int64_t> images;
  int64_t in, out;
  Pair size, kernel{3, 3}, padding{1, 1}, dilation{1, 1};
};

void compare(const Case& c, at::ScalarType type, bool kernel, bool weight_last = true) {
  SCOPED_TRACE(::testing::Message() << c.in << " to " << c.out << ", " << at::IntArrayRef(c.images) << " images of "
                                    << at::IntArrayRef(c.size) << ", kernel " << at::IntArrayRef(c.kernel)
                                    << ", padding "
                                    << at::IntArrayRef(c.padding) << ", dilation " << at::IntArrayRef(c.dilation));
  const auto experts = static_cast<int64_t>(c.images.size());
  const int64_t all = ends_of(c.images).back();
  const at::Tensor x = at::randn({all, c.in, c.size[0], c.size[1]}, on(at::kFloat)).to(type).contiguous(channels_last);
  at::Tensor weight = at::randn({experts, c.out, c.kernel[0], c.kernel[1], c.in}, on(at::kFloat)).to(type).permute(
      {0, 1, 4, 2, 3});
  if (!weight_last) weight = weight.contiguous();
  const Tensors given{x.detach().set_requires_grad(true), weight.detach().set_requires_grad(true)};
  const int64_t before = operators::fallbacks();
  const auto [y, moments] = operators::find<operators::GroupedConv2d>()->call(
      given[0], given[1], offsets_of(c.images), c.padding, c.dilation, /*moments=*/true);
  const Tensors got = results(y, given);
  EXPECT_EQ(operators::fallbacks() - before, kernel ? 0 : 2);
  const Tensors wide{x.to(at::kDouble).set_requires_grad(true), weight.to(at::kDouble).set_requires_grad(true)};
  std::vector<at::Tensor> each;
  const auto ends = ends_of(c.images);
  for (int64_t e = 0; e < experts; ++e)
    if (c.images[e] > 0)
      each.push_back(at::conv2d(wide[0].slice(0, ends[e], ends[e + 1]), wide[1][e], {}, 1, c.padding, c.dilation));
  const Tensors exact = results(at::cat(each), wide);
  const char* names[] = {"y", "d_x", "d_weight"};
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(got[i].sizes(), exact[i].sizes());
    EXPECT_LE(relative_error(got[i], exact[i]), type == at::kFloat ? 1e-5 : 1e-2) << names[i];
  }
  for (int64_t e = 0; e < experts; ++e)
    if (c.images[e] == 0) {
      EXPECT_EQ(got[2][e].abs().sum().item<double>(), 0) << "idle expert " << e;
    }
  if (!kernel) return;
  EXPECT_TRUE(y.is_contiguous(channels_last));
}

const std::vector<Case> cases{
    {{2, 1}, 64, 64, {8, 8}},
    {{3, 0, 1, 2}, 64, 64, {14, 14}},
    {{1, 2, 0}, 128, 128, {14, 10}},
    {{2, 0, 3}, 320, 320, {14, 14}},
    {{2, 2}, 512, 512, {7, 7}},
    {{1, 3}, 256, 96, {9, 11}},
    {{1, 3}, 72, 136, {5, 6}},
    {{2, 1}, 8, 16, {3, 2}},
    {{2, 1}, 64, 64, {1, 1}, {1, 1}, {0, 0}},
    {{2, 3}, 64, 128, {12, 9}, {1, 1}, {0, 0}},
    {{2, 1}, 64, 64, {13, 8}, {3, 1}, {1, 0}},
    {{2, 1}, 64, 64, {13, 8}, {1, 5}, {0, 2}},
    {{2, 1}, 64, 64, {13, 8}, {5, 3}, {2, 0}},
    {{2, 1}, 64, 64, {13, 8}, {3, 3}, {3, 3}, {3, 3}},
    {{2, 1}, 64, 64, {13, 12}, {3, 3}, {2, 1}, {2, 3}},
    {{2, 1}, 64, 64, {9, 9}, {3, 3}, {0, 0}},
    {{2, 1}, 64, 64, {9, 9}, {3, 3}, {2, 2}},
    {{20, 1, 0, 19}, 64, 64, {28, 28}},
    {{20, 1, 0, 19}, 128, 128, {28, 28}},
    {{9, 1, 0, 4}, 320, 320, {28, 28}},
    {{30, 1, 0, 9}, 512, 512, {14, 14}},
    {{40}, 64, 64, {56, 56}},
};

TEST(GroupedConv2d, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(1);
  for (const Case& c : cases) compare(c, at::kBFloat16, true);
  // The weights' gradients have a little more than a turn of tiles on 132 multiprocessors.
  compare({std::vector<int64_t>(8, 25), 712, 40, {12, 10}}, at::kBFloat16, true);
  compare({std::vector<int64_t>(5, 25), 136, 1032, {12, 10}}, at::kBFloat16, true);
  compare(cases[1], at::kBFloat16, true, /*weight_last=*/false);
}

TEST(GroupedConv2d, OtherTypesAndOddChannelsFallBack_CUDA) {
  MOECOD_NEEDS_CUDA();
  at::globalContext().setAllowTF32CuDNN(false);
  torch::manual_seed(2);
  compare({{2, 0, 1}, 16, 24, {8, 8}}, at::kFloat, false);
  compare({{2, 0, 1}, 12, 20, {8, 8}}, at::kBFloat16, false);
  compare({{2, 0, 1}, 16, 16, {8, 8}, {3, 3}, {3, 3}}, at::kBFloat16, false);  // padded beyond the kernel's reach
  at::globalContext().setAllowTF32CuDNN(true);
}

TEST(GroupedConv2d, CopiesWhatKernelsCannotReadInVectors_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(8);
  const at::Tensor x = at::randn({4, 64, 10, 12}, on(at::kBFloat16)).contiguous(channels_last);
  const at::Tensor w = at::randn({2, 64, 64, 1, 1}, on(at::kBFloat16)), offsets = offsets_of({1, 3});
  // The same values one element behind a boundary of 16 bytes.
  const auto moved = [](const at::Tensor& t) {
    at::Tensor out = at::empty({t.numel() + 1}, t.options()).slice(0, 1).as_strided(t.sizes(), t.strides());
    return out.copy_(t);
  };
  const auto run = [&](const at::Tensor& x0, const at::Tensor& w0) {
    const at::Tensor a = x0.detach().set_requires_grad(true), b = w0.detach().set_requires_grad(true);
    const int64_t before = operators::fallbacks();
    const auto [y, moments] =
        operators::find<operators::GroupedConv2d>()->call(a, b, offsets, Pair{0, 0}, Pair{1, 1}, false);
    const Tensors all = results(y, {a, b});
    EXPECT_EQ(operators::fallbacks(), before);
    return all;
  };
  const Tensors right = run(x, w), got = run(moved(x), moved(w));
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i], right[i])) << "result " << i;
}

TEST(GroupedConv2d, RepeatsBitwiseDoesNotWaitAndCaptures_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(3);
  for (int64_t channels : {64, 320}) {
    const at::Tensor x =
        at::randn({12, channels, 28, 28}, on(at::kBFloat16)).contiguous(channels_last).set_requires_grad(true);
    const at::Tensor w = at::randn({4, channels, channels, 3, 3}, on(at::kBFloat16)).set_requires_grad(true);
    const at::Tensor offsets = offsets_of({5, 0, 1, 6}), seed = at::randn_like(x);
    const auto step = [&] {
      const auto [y, moments] =
          operators::find<operators::GroupedConv2d>()->call(x, w, offsets, Pair{1, 1}, Pair{1, 1}, false);
      Tensors out{y};
      for (const at::Tensor& grad : torch::autograd::grad({y}, {x, w}, {seed})) out.push_back(grad);
      return out;
    };
    expect_repeats(step);
    expect_waits_never(step);
    expect_captures(step, [&](int i) { offsets.copy_(offsets_of({i, 3, 0, 9 - i})); });
  }
}

/// Parameters and buffers of a grouped batch normalisation.
struct Norm {
  at::Tensor weight, bias, mean, var, tracked;
  Norm(int64_t experts, int64_t channels, at::ScalarType type) {
    const auto options = on(type);
    weight = (at::rand({experts, channels}, on(at::kFloat)) + 0.5).to(options).set_requires_grad(true);
    bias = at::randn({experts, channels}, on(at::kFloat)).to(options).set_requires_grad(true);
    mean = at::randn({experts, channels}, on(at::kFloat)).to(options);
    var = (at::rand({experts, channels}, on(at::kFloat)) + 0.5).to(options);
    tracked = at::zeros({experts}, on(at::kLong));
  }
  Norm to(at::ScalarType type) const {
    Norm out(*this);
    out.weight = weight.detach().to(type).clone().set_requires_grad(true);
    out.bias = bias.detach().to(type).clone().set_requires_grad(true);
    out.mean = mean.to(type).clone();
    out.var = var.to(type).clone();
    out.tracked = tracked.clone();
    return out;
  }
};

/// y, d_x, d_weight, d_bias, running mean, running variance, by at::batch_norm of each expert.
Tensors norm_by_experts(const at::Tensor& x, const Norm& norm, const std::vector<int64_t>& images, bool training,
                        bool relu) {
  std::vector<at::Tensor> out;
  const auto ends = ends_of(images);
  for (std::size_t e = 0; e < images.size(); ++e) {
    if (images[e] == 0) continue;
    const at::Tensor rows = x.slice(0, ends[e], ends[e + 1]);
    const int64_t at = static_cast<int64_t>(e);
    const bool batch = training && rows.numel() > rows.size(1);
    const at::Tensor y = at::batch_norm(rows, norm.weight[at], norm.bias[at], norm.mean[at], norm.var[at], batch, 0.1,
                                        1e-5, /*cudnn_enabled=*/false);
    if (batch) norm.tracked[at].add_(1);
    out.push_back(relu ? at::relu(y) : y);
  }
  Tensors all = results(at::cat(out), {x, norm.weight, norm.bias});
  all.push_back(norm.mean);
  all.push_back(norm.var);
  return all;
}

void compare_norm(const std::vector<int64_t>& images, int64_t channels, Pair size, bool training, bool relu,
                  at::ScalarType type, bool kernel, bool from_conv) {
  SCOPED_TRACE(::testing::Message() << at::IntArrayRef(images) << " images of " << channels << " x "
                                    << at::IntArrayRef(size) << ", training " << training << ", relu " << relu);
  const auto experts = static_cast<int64_t>(images.size());
  at::Tensor x = (at::randn({ends_of(images).back(), channels, size[0], size[1]}, on(at::kFloat)) * 2 + 5)
                     .to(type)
                     .contiguous(channels_last);
  const at::Tensor offsets = offsets_of(images);
  std::optional<at::Tensor> moments;
  if (from_conv) {
    const at::Tensor w = at::randn({experts, channels, channels, 1, 1}, on(type)) / std::sqrt(double(channels));
    const auto [y, taken] =
        operators::find<operators::GroupedConv2d>()->call(x, w, offsets, Pair{0, 0}, Pair{1, 1}, /*moments=*/true);
    x = y;
    moments = taken;
  }
  x = x.detach().set_requires_grad(true);
  const Norm start(experts, channels, at::kFloat), norm = start.to(at::kFloat), wide = start.to(at::kDouble);
  const int64_t before = operators::fallbacks();
  const auto [y, used] = operators::find<operators::GroupedBatchNorm>()->call(
      x, norm.weight, norm.bias, norm.mean, norm.var, norm.tracked, offsets, moments, training, training, 0.1, 1e-5,
      relu);
  Tensors got = results(y, {x, norm.weight, norm.bias});
  EXPECT_EQ(operators::fallbacks() - before, kernel ? 0 : 2);
  got.push_back(norm.mean);
  got.push_back(norm.var);
  const Tensors exact =
      norm_by_experts(x.detach().to(at::kDouble).set_requires_grad(true), wide, images, training, relu);
  const char* names[] = {"y", "d_x", "d_weight", "d_bias", "running mean", "running variance"};
  for (int i = 0; i < 6; ++i)
    EXPECT_LE(relative_error(got[i], exact[i]), type == at::kFloat ? 1e-4 : i < 4 ? 1e-2 : 1e-5) << names[i];
  EXPECT_TRUE(at::equal(norm.tracked, wide.tracked));
}

TEST(GroupedBatchNorm, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(4);
  for (bool training : {true, false})
    for (bool relu : {false, true}) {
      compare_norm({3, 0, 1, 5}, 64, {14, 14}, training, relu, at::kBFloat16, true, false);
      compare_norm({3, 1}, 320, {28, 28}, training, relu, at::kBFloat16, true, false);
      compare_norm({1, 2, 0}, 8, {1, 1}, training, relu, at::kBFloat16, true, false);
      compare_norm({2, 2}, 2056, {3, 3}, training, relu, at::kBFloat16, true, false);
      compare_norm({2, 0, 2}, 12, {5, 5}, training, relu, at::kFloat, false, false);
    }
}

TEST(GroupedBatchNorm, TakesTheMomentsOfTheConvolution_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(5);
  for (int64_t channels : {64, 128, 320, 512, 24, 136})
    compare_norm({3, 0, 1, 5}, channels, {14, 14}, true, true, at::kBFloat16, true, true);
  // Enough tiles that the convolution chooses each of its sizes, on devices of some 132 multiprocessors.
  compare_norm({20, 1, 0, 19}, 64, {28, 28}, true, true, at::kBFloat16, true, true);
  compare_norm({20, 1, 0, 19}, 128, {28, 28}, true, true, at::kBFloat16, true, true);
  compare_norm({9, 1, 0, 4}, 320, {28, 28}, true, true, at::kBFloat16, true, true);
  compare_norm({30, 1, 0, 9}, 512, {14, 14}, true, true, at::kBFloat16, true, true);
  compare_norm({60, 1, 0, 67}, 320, {28, 28}, true, true, at::kBFloat16, true, true);
  compare_norm({60, 1, 0, 67}, 192, {28, 28}, true, true, at::kBFloat16, true, true);
  compare_norm({60, 1, 0, 67}, 256, {28, 28}, true, true, at::kBFloat16, true, true);
}

/// A single convolution with its normalisation under autocast to bfloat16, which the same kernels run, against float64.
/// (ReLU behind it would hide or show values near zero, by their rounding.)
TEST(ConvNorm, OfOneExpertRunsTheKernels_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(7);
  for (const bool training : {true, false})
    for (const auto& [in, out, format] : {std::tuple{64, 64, at::MemoryFormat::Contiguous}, {72, 136, channels_last}}) {
      SCOPED_TRACE(::testing::Message() << in << " to " << out << ", training " << training);
      layers::ConvNorm<> layer(layers::Conv2dOptions::square(in, out, 3), layers::After::nothing);
      {
        const torch::NoGradGuard no_grad;
        layer.norm->weight.uniform_(0.5, 1.5);
        layer.norm->bias.normal_();
        layer.norm->running_mean.normal_();
        layer.conv->weight.copy_(layer.conv->weight.to(at::kBFloat16));
      }
      layers::ConvNorm<> wide(layers::Conv2dOptions::square(in, out, 3), layers::After::nothing);
      const auto state = [](layers::ConvNorm<>& of) {
        Tensors all = of.parameters();
        for (const at::Tensor& buffer : of.buffers()) all.push_back(buffer);
        return all;
      };
      wide.to(at::kDouble);
      for (std::size_t i = 0; i < state(layer).size(); ++i) {
        const torch::NoGradGuard no_grad;
        state(wide)[i].copy_(state(layer)[i]);
      }
      const at::Tensor x = at::randn({5, in, 14, 12}, at::kFloat).to(at::kBFloat16).to(at::kFloat);
      const auto run = [&](layers::ConvNorm<>& of, const at::Tensor& input) {
        of.train(training);
        const at::Tensor leaf = input.detach().clone().set_requires_grad(true);
        const at::Tensor y = of.forward(leaf);
        Tensors wanted = of.parameters();
        wanted.push_back(leaf);
        Tensors all = results(y, wanted);
        for (const at::Tensor& buffer : of.buffers()) all.push_back(buffer.clone());
        return all;
      };
      const Tensors exact = run(wide, x.to(at::kDouble));
      layer.to(at::kCUDA);
      const AutocastGuard autocast({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true});
      const int64_t before = operators::fallbacks();
      const at::Tensor given = x.cuda().contiguous(format);
      ASSERT_TRUE(layer.conv->runs_grouped(given, {}));
      const Tensors got = run(layer, given);
      EXPECT_EQ(operators::fallbacks(), before);
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i].cpu(), exact[i]), 1e-2) << "result " << i;
      expect_waits_never([&] { run(layer, given); });
      const AutocastGuard full({.device = at::kCUDA, .enabled = false, .dtype = at::kBFloat16, .cache = true});
      EXPECT_FALSE(layer.conv->runs_grouped(given, {})) << "float32 is LibTorch's";
    }
}

/// The convolutional experts by Grouped against the same by Batched, both in bfloat16 on the device.
TEST(ConvExperts, GroupedEqualsBatched_CUDA) {
  MOECOD_NEEDS_HOPPER();
  for (bool training : {true, false}) {
    torch::manual_seed(6);
    Replicated<expert::Conv<>, 4> grouped({.channels = 64}), batched({.channels = 64});
    for (std::size_t i = 0; i < grouped.parameters().size(); ++i) {
      const torch::NoGradGuard no_grad;
      batched.parameters()[i].copy_(grouped.parameters()[i]);
    }
    const at::Tensor x = at::randn({9, 64, 14, 14}, on(at::kFloat)).contiguous(channels_last);
    const at::Tensor chosen = at::tensor({0, 2, 2, 0, 3, 0, 2, 3, 0, 2, 0, 3, 3, 0, 0, 2, 2, 3}).view({9, 2});
    const Routing routing = Routing::given(chosen.cuda(), at::rand({9, 2}, on(at::kFloat)), 4);
    const at::Tensor weight = at::randn_like(x);
    std::vector<at::Tensor> y, grads;
    for (auto* experts : {&grouped, &batched}) {
      experts->to(at::kCUDA);
      experts->train(training);
      const at::Tensor in = x.clone().set_requires_grad(true);
      at::autocast::set_autocast_enabled(at::kCUDA, true);
      at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
      const int64_t before = operators::fallbacks();
      y.push_back(experts == &grouped ? dispatch::Grouped::run(*experts, in, routing).y
                                      : dispatch::Batched::run(*experts, in, routing).y);
      (y.back() * weight).sum().backward();
      at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(at::kCUDA, false);
      EXPECT_EQ(operators::fallbacks(), before);
      grads.push_back(in.grad());
    }
    EXPECT_LE(relative_error(y[0], y[1]), 1e-2);
    EXPECT_LE(relative_error(grads[0], grads[1]), 2e-2);
    for (const auto& p : grouped.named_parameters())
      EXPECT_LE(relative_error(p.value().grad(), batched.named_parameters()[p.key()].grad()), 2e-2) << p.key();
    for (const auto& b : grouped.named_buffers())
      EXPECT_LE(relative_error(b.value(), batched.named_buffers()[b.key()]), 1e-2) << b.key();
  }
}

}  // namespace
}  // namespace moecod::on_cuda
