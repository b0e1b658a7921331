// moecod::grouped_layer_norm against float64, expert by expert; the stacked layer that uses it.
#include "moecod/layers/norm.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

struct Case {
  std::vector<int64_t> rows;  // of each expert
  int64_t items, width;       // items a row
};

const std::vector<Case> cases{{{300, 0, 41}, 1, 64},  {{2, 1}, 196, 320}, {{5}, 49, 512},     {{0, 0, 7}, 3, 96},
                              {{1, 1, 1}, 1, 1024},   {{9, 9}, 7, 8},     {{4, 2}, 1, 304},   {{0, 3}, 40000, 64},
                              {{64}, 3, 128}};

/// y, d_x, d_weight, d_bias.
template <class Forward>
Tensors results(const Forward& forward, const Tensors& in) {
  Tensors leaves;
  for (const at::Tensor& t : in) leaves.push_back(t.detach().clone().set_requires_grad(true));
  const at::Tensor y = forward(leaves[0], leaves[1], leaves[2]);
  const at::Tensor number = at::arange(y.numel(), y.options().dtype(at::kDouble)).view(y.sizes());
  const at::Tensor seed = number.mul(0.37).sin().to(at::kBFloat16).to(y.scalar_type());
  Tensors all{y};
  for (const at::Tensor& grad : torch::autograd::grad({y}, leaves, {seed})) all.push_back(grad);
  return all;
}

Tensors by_operator(const Case& c, const Tensors& in, double eps) {
  return results(
      [&](const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
        return operators::find<operators::GroupedLayerNorm>()->call(x, w, b, offsets_of(c.rows), eps);
      },
      in);
}

/// In float64, on the CPU.
Tensors one_by_one(const Case& c, const Tensors& in, double eps) {
  Tensors wide;
  for (const at::Tensor& t : in) wide.push_back(t.cpu().to(at::kDouble));
  return results(
      [&](const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
        Tensors out;
        int64_t begin = 0;
        for (std::size_t e = 0; e < c.rows.size(); begin += c.rows[e++])
          if (c.rows[e] > 0)
            out.push_back(
                at::layer_norm(x.slice(0, begin, begin + c.rows[e]), {c.width}, w[int64_t(e)], b[int64_t(e)], eps));
        return at::cat(out);
      },
      wide);
}

/// Rows whose mean is many times their deviation.
Tensors inputs(const Case& c, at::ScalarType type) {
  const auto experts = static_cast<int64_t>(c.rows.size());
  return {(at::randn({ends_of(c.rows).back(), c.items, c.width}, on(at::kFloat)) * 2 + 7).to(type),
          at::randn({experts, c.width}, on(at::kFloat)), at::randn({experts, c.width}, on(at::kFloat))};
}

TEST(LayerNormOperator, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const Case& c : cases) {
      if (type == at::kFloat && c.width > 512) continue;
      SCOPED_TRACE(::testing::Message() << type << " " << at::IntArrayRef(c.rows) << " rows of " << c.items << " x "
                                        << c.width);
      const Tensors in = inputs(c, type);
      const int64_t before = operators::fallbacks();
      const Tensors got = by_operator(c, in, 1e-6);
      EXPECT_EQ(operators::fallbacks(), before) << "the kernels take these";
      const Tensors exact = one_by_one(c, in, 1e-6);
      const double tolerance = type == at::kFloat ? 5e-6 : type == at::kHalf ? 1e-3 : 6e-3;
      const char* names[] = {"y", "d_x", "d_weight", "d_bias"};
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].sizes(), exact[i].sizes()) << names[i];
        EXPECT_LE(relative_error(got[i].cpu(), exact[i]), tolerance) << names[i];
      }
      for (std::size_t e = 0; e < c.rows.size(); ++e)
        if (c.rows[e] == 0) {
          EXPECT_EQ(got[2][int64_t(e)].abs().max().item<float>(), 0) << "an idle expert's gradient";
        }
    }
}

TEST(LayerNormOperator, OtherWidthsAndFloat64RunLibTorchsOperations_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (const auto& [c, type] : {std::pair{Case{{3, 0, 4}, 5, 35}, at::kBFloat16}, std::pair{Case{{3, 4}, 5, 2048}, at::kFloat},
                                std::pair{cases[1], at::kDouble}}) {
    const Tensors in = inputs(c, type);
    const int64_t before = operators::fallbacks();
    const Tensors got = by_operator(c, in, 1e-5), exact = one_by_one(c, in, 1e-5);
    EXPECT_EQ(operators::fallbacks(), before + 2) << "forward and backward";
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i].cpu(), exact[i]), 2e-2) << i;
  }
}

TEST(LayerNormOperator, RepeatsWaitsNeverAndIsCaptured_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  const at::Tensor x = at::randn({90, 50, 64}, on(at::kBFloat16)).set_requires_grad(true);
  const at::Tensor w = at::randn({3, 64}, on(at::kFloat)).set_requires_grad(true);
  const at::Tensor b = at::randn({3, 64}, on(at::kFloat)).set_requires_grad(true), seed = at::randn_like(x);
  at::Tensor offsets = offsets_of({40, 0, 50});
  const auto step = [&] {
    const at::Tensor y = operators::find<operators::GroupedLayerNorm>()->call(x, w, b, offsets, 1e-6);
    const auto grads = torch::autograd::grad({y}, {x, w, b}, {seed});
    return Tensors{y, grads[0], grads[1], grads[2]};
  };
  expect_repeats(step);
  expect_waits_never(step);
  const std::vector<std::vector<int64_t>> routings{{90, 0, 0}, {1, 88, 1}, {0, 0, 90}, {30, 30, 30}};
  expect_captures(step, [&](int i) { offsets.copy_(offsets_of(routings[std::size_t(i)])); });
}

TEST(LayerNormOperator, RunsStackedLayers_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  layers::LayerNorm<layers::Stacked> norm(64, 1e-5, layers::Stacked{3});
  {
    const torch::NoGradGuard no_grad;
    norm.weight.normal_();
    norm.bias.normal_();
  }
  norm.to(at::kCUDA);
  const at::Tensor x = at::randn({5, 10, 64}, on(at::kFloat)), offsets = offsets_of({2, 0, 3});
  const auto group = layers::Stacked::Group::sorted(offsets);
  const at::Tensor wide = norm.forward(x, group);
  const AutocastGuard autocast({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true});
  const auto unread = layers::Stacked::Group::sorted(offsets);
  const at::Tensor y = norm.forward(x, unread);
  EXPECT_TRUE(unread.host->empty()) << "the offsets stayed on the device";
  EXPECT_LE(relative_error(y, wide), 6e-3);
}

}  // namespace
}  // namespace moecod::on_cuda
