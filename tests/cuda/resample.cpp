// Resized maps, and the backward passes of resized and pooled ones, against LibTorch's in float64.
#include <functional>
#include <string_view>

#include "moecod/layers/pool.hpp"
#include "moecod/layers/resize.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

struct Case {
  int64_t height, width, out_height, out_width;
};

using Layer = std::function<at::Tensor(const at::Tensor&, const Case&)>;
struct Kind {
  const char* name;
  Layer mine, torch;
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all{
      {"resize",
       [](const at::Tensor& x, const Case& c) { return layers::resize(x, c.out_height, c.out_width); },
       [](const at::Tensor& x, const Case& c) { return at::upsample_bilinear2d(x, {c.out_height, c.out_width}, false); }},
      {"resize, corners on corners",
       [](const at::Tensor& x, const Case& c) { return layers::resize(x, c.out_height, c.out_width, true); },
       [](const at::Tensor& x, const Case& c) { return at::upsample_bilinear2d(x, {c.out_height, c.out_width}, true); }},
      {"average_pool",
       [](const at::Tensor& x, const Case& c) { return layers::average_pool(x, c.out_height, c.out_width); },
       [](const at::Tensor& x, const Case& c) { return at::adaptive_avg_pool2d(x, {c.out_height, c.out_width}); }},
      {"max_pool",
       [](const at::Tensor& x, const Case& c) { return layers::max_pool(x, c.out_height, c.out_width); },
       [](const at::Tensor& x, const Case& c) {
         return std::get<0>(at::adaptive_max_pool2d(x, {c.out_height, c.out_width}));
       }},
  };
  return all;
}

at::Tensor gradient(const Layer& layer, const at::Tensor& x0, const at::Tensor& seed, const Case& c) {
  const at::Tensor x = x0.detach().clone().set_requires_grad(true);
  return torch::autograd::grad({layer(x, c)}, {x}, {seed})[0];
}

const std::vector<Case> cases{{14, 14, 28, 28},   {14, 14, 448, 448}, {28, 28, 14, 14}, {7, 11, 20, 13}, {13, 9, 5, 31},
                              {56, 40, 112, 100}, {1, 5, 9, 9},       {6, 6, 1, 1},     {5, 5, 6, 6},    {96, 64, 7, 5}};

void compare(at::ScalarType type, at::MemoryFormat format, double tolerance) {
  for (const Kind& kind : kinds())
    for (const Case& c : cases)
      for (int64_t channels : {1, 3, 16}) {
        SCOPED_TRACE(::testing::Message() << kind.name << " " << type << " " << format << " C " << channels << " " << c.height
                                          << " x " << c.width << " to " << c.out_height << " x " << c.out_width);
        const at::Tensor x = at::randn({2, channels, c.height, c.width}, on(at::kFloat)).to(type).contiguous(format);
        const at::Tensor seed =
            at::randn({2, channels, c.out_height, c.out_width}, on(at::kFloat)).to(type).contiguous(format);
        const int64_t before = operators::fallbacks();
        const at::Tensor got = gradient(kind.mine, x, seed, c);
        EXPECT_EQ(operators::fallbacks(), before) << "the kernel takes these";
        EXPECT_EQ(got.scalar_type(), type);
        EXPECT_EQ(got.sizes(), x.sizes());
        const at::Tensor wide = x.cpu().to(at::kDouble), exact = gradient(kind.torch, wide, seed.cpu().to(at::kDouble), c);
        EXPECT_LE(relative_error(got.cpu(), exact), tolerance);
        const at::Tensor y = kind.mine(x, c);
        EXPECT_TRUE(y.is_contiguous(format));
        EXPECT_LE(relative_error(y.cpu(), kind.torch(wide, c)), tolerance) << "forward";
      }
}

TEST(Resample, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (at::MemoryFormat format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
    compare(at::kFloat, format, 2e-5);
    compare(at::kHalf, format, 1e-3);
    compare(at::kBFloat16, format, 6e-3);
  }
}

/// More rows than blocks that start at once: each block takes several.
TEST(Resample, TakesManyRows_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const Case c{12, 8, 24, 260};
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    for (int64_t channels : {1, 16}) {
      const at::Tensor x = at::randn({1100, channels, c.height, c.width}, on(at::kFloat)).contiguous(channels_last);
      const at::Tensor seed = at::randn({1100, channels, c.out_height, c.out_width}, on(at::kFloat)).contiguous(channels_last);
      const at::Tensor wide = x.to(at::kDouble);
      EXPECT_LE(relative_error(kind.mine(x, c), kind.torch(wide, c)), 2e-5);
      EXPECT_LE(relative_error(gradient(kind.mine, x, seed, c), gradient(kind.torch, wide, seed.to(at::kDouble), c)), 2e-5);
    }
  }
}

/// What LibTorch says no to.
TEST(Resample, RefusesMapsWithoutPixels_CUDA) {
  MOECOD_NEEDS_CUDA();
  EXPECT_THROW(layers::resize(at::zeros({1, 3, 0, 5}, on(at::kFloat)), 4, 4), c10::Error);
}

/// A gradient of one pixel has no format; that of the map follows the map.
TEST(Resample, GradientsOfPoolsLieAsTheMaps_CUDA) {
  MOECOD_NEEDS_CUDA();
  for (at::MemoryFormat format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast})
    for (std::size_t kind : {2, 3}) {
      const at::Tensor x = at::randn({2, 16, 7, 7}, on(at::kBFloat16)).contiguous(format);
      const at::Tensor seed = at::ones({2, 16, 1, 1}, on(at::kBFloat16));
      EXPECT_TRUE(gradient(kinds()[kind].mine, x, seed, {7, 7, 1, 1}).is_contiguous(format)) << kinds()[kind].name;
    }
}

TEST(Resample, Float64RunsLibTorchsOperations_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const Case c = cases[3];
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    const at::Tensor x = at::randn({2, 3, c.height, c.width}, on(at::kDouble));
    const at::Tensor seed = at::randn({2, 3, c.out_height, c.out_width}, on(at::kDouble));
    const int64_t before = operators::fallbacks();
    const at::Tensor got = gradient(kind.mine, x, seed, c);
    const bool resizes = std::string_view(kind.name).starts_with("resize");
    EXPECT_EQ(operators::fallbacks(), before + (resizes ? 2 : 1)) << "resizing forward too";
    EXPECT_LE(relative_error(got.cpu(), gradient(kind.torch, x.cpu(), seed.cpu(), c)), 1e-12);
  }
}

TEST(Resample, RepeatsWaitsNeverAndIsCaptured_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (const Kind& kind : kinds())
    for (const Case& c : {cases[0], cases[1], cases[4]}) {
      SCOPED_TRACE(kind.name);
      const at::Tensor x = at::randn({3, 8, c.height, c.width}, on(at::kBFloat16)).set_requires_grad(true);
      at::Tensor seed = at::randn({3, 8, c.out_height, c.out_width}, on(at::kBFloat16));
      const auto step = [&] { return Tensors{torch::autograd::grad({kind.mine(x, c)}, {x}, {seed})[0]}; };
      expect_repeats(step);
      expect_waits_never(step);
      expect_captures(step, [&](int) { seed.copy_(at::randn_like(seed)); });
    }
}

TEST(Resample, RefusesOtherShapes_CUDA) {
  MOECOD_NEEDS_CUDA();
  const at::Tensor grad = at::zeros({1, 1, 4, 4}, on(at::kFloat));
  EXPECT_THROW(operators::find<operators::ResizeBackward>()->call(grad[0], 2, 2, false), c10::Error);
  EXPECT_THROW(operators::find<operators::AveragePoolBackward>()->call(grad, 0, 2), c10::Error);
  EXPECT_THROW(operators::find<operators::MaxPoolBackward>()->call(grad, grad, 2, 2), c10::Error);
}

}  // namespace
}  // namespace moecod::on_cuda
