#pragma once
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/rows.hpp"

/// The laws of moecod's policies, as typed GoogleTest suites that any policy can be held against:
///
///     #include "tests/laws/balance_laws.hpp"
///     using namespace moecod::laws;
///     INSTANTIATE_TYPED_TEST_SUITE_P(Mine, BalanceLaws, MyPolicy);
///
/// Tests whose name ends in _CUDA run on the first CUDA device and are skipped where there is none.
namespace moecod::laws {

/// Tensors with names, to be compared one by one.
using Named = std::vector<std::pair<std::string, at::Tensor>>;

inline ::testing::AssertionResult same(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() && b.defined() && a.scalar_type() == b.scalar_type() && at::equal(a, b))
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "not bitwise equal:\n" << a << "\nand\n" << b;
}

/// |a - b| <= tolerance * (1 + |b|) everywhere; a NaN is close to nothing.
inline ::testing::AssertionResult close(const at::Tensor& a, const at::Tensor& b, double tolerance) {
  if (!a.defined() || !b.defined() || a.sizes() != b.sizes())
    return ::testing::AssertionFailure() << "different shapes, or undefined:\n" << a << "\nand\n" << b;
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  if (x.numel() == 0 || ((x - y).abs() <= tolerance * (1 + y.abs())).all().item<bool>())
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "differ by up to " << (x - y).abs().max().item<double>() << ", allowed are "
                                       << tolerance << " * (1 + |b|)";
}

/// tolerance 0: bitwise.
inline void expect_equal(const Named& a, const Named& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(tolerance > 0 ? close(a[i].second, b[i].second, tolerance) : same(a[i].second, b[i].second))
        << a[i].first;
  }
}

/// Standard normal values in float64 that depend on the seed and the shape alone.
inline at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::Device device = at::kCPU) {
  torch::manual_seed(seed);
  return at::randn(sizes, at::kDouble).to(device);
}

/// A module of a given seed, in float64 on a device.
template <class Module, class... Arguments>
std::shared_ptr<Module> make(at::Device device, const Arguments&... arguments) {
  torch::manual_seed(7);
  auto module = std::make_shared<Module>(arguments...);
  module->to(device, at::kDouble);
  return module;
}

/// Copies of everything a module would save.
inline Named snapshot(const torch::nn::Module& module) {
  Named out;
  for (const auto& [name, tensor] : state_dict(module)) out.emplace_back(name, tensor.detach().clone());
  return out;
}

/// K distinct experts of E for each row, none of them `idle`, with weights that sum to 1.
inline Routing sample_routing(int64_t rows, int64_t experts, int64_t per_row, uint64_t seed, int64_t idle = -1,
                              at::Device device = at::kCPU) {
  at::Tensor score = normal({rows, experts}, seed);
  if (idle >= 0) score.select(1, idle).fill_(-1e9);
  const at::Tensor chosen = score.argsort(1, /*descending=*/true).slice(1, 0, per_row);
  return Routing::given(chosen.to(device), at::softmax(score.gather(1, chosen), 1).to(device), experts);
}

/// The weights as a matrix [N, E], zero where an expert was not chosen.
inline at::Tensor dense_weights(const Routing& routing) {
  return at::zeros({routing.rows(), routing.num_experts()}, routing.weights.options())
      .scatter_add(1, routing.experts.to(at::kLong).clamp_min(0), routing.weights);
}

/// Fixed numbers in the shape of y, so that (y * probe(y)).sum() is a loss that every entry moves differently.
inline at::Tensor probe(const at::Tensor& y) {
  return at::cos(at::arange(y.numel(), y.options().requires_grad(false)) * 0.7).view(y.sizes());
}

/// A sample of what a policy works on; specialise it for a policy whose options or input differ.
///
/// `channels` in the options is set where it exists. Inputs are [rows, 8, 6, 6] for images and, for what works by
/// position, [rows, 8]; in float64.
template <class Policy>
struct Sample {
  static constexpr int64_t channels = 8;
  static typename Policy::Options options() {
    typename Policy::Options out;
    if constexpr (requires { out.channels; }) out.channels = channels;
    return out;
  }
  static at::Tensor input(int64_t rows, at::Device device = at::kCPU) {
    if constexpr (requires { typename Policy::rows; }) {
      if constexpr (std::is_same_v<typename Policy::rows, rows::Positions>) return normal({rows, channels}, 3, device);
    } else if constexpr (requires { typename Policy::granularity; }) {
      if constexpr (std::is_same_v<typename Policy::granularity, rows::Positions>)
        return normal({rows, channels}, 3, device);
    }
    return normal({rows, channels, 6, 6}, 3, device);
  }
};

}  // namespace moecod::laws

#define MOECOD_SKIP_WITHOUT_CUDA() \
  if (!torch::cuda::is_available()) GTEST_SKIP() << "needs a CUDA device"
