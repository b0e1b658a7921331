// A whole mixture over the operators: against the CPU, without waiting for the device, and on the CPU without them.
#include <map>
#include <string>

#include "moecod/expert/conv.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/expert/swiglu.hpp"
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/balance/loss_free.hpp"
#include "moecod/moe/balance/none.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/router/position.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

TEST(Operators, AreRegisteredByTheLibrary) {
  EXPECT_NE(operators::find<operators::Select>(), nullptr);
  EXPECT_NE(operators::find<operators::Plan>(), nullptr);
  EXPECT_NE(operators::find<operators::Gather>(), nullptr);
  EXPECT_NE(operators::find<operators::Combine>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedLinear>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedConv2d>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedBatchNorm>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedSwiGlu>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedSwiGluKept>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedSwiGluCombine>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedDepthwiseConv2d>(), nullptr);
  EXPECT_NE(operators::find<operators::GroupedLayerNorm>(), nullptr);
  EXPECT_NE(operators::find<operators::Conv2dTakes>(), nullptr);
  EXPECT_NE(operators::find<operators::Resize>(), nullptr);
  EXPECT_NE(operators::find<operators::ResizeBackward>(), nullptr);
  EXPECT_NE(operators::find<operators::AveragePoolBackward>(), nullptr);
  EXPECT_NE(operators::find<operators::MaxPoolBackward>(), nullptr);
}

TEST(Operators, TheCpuKeepsLibTorchsOperations) {
  const at::Tensor x = at::rand({3, 4});
  EXPECT_EQ(operators::find_for<operators::Select>(x), nullptr);
}

template <class Balance, class Dispatch>
void agrees_with_cpu() {
  using Mine =
      Mixture<router::Position, Replicated<expert::Mlp<>, 6>, select::TopK<2>, Balance, Dispatch>;
  typename Mine::Options options;
  options.router.channels = options.experts.channels = 16;
  torch::manual_seed(1);
  Mine host(options);
  torch::manual_seed(1);
  Mine device(options);
  device.to(at::kCUDA);
  torch::manual_seed(2);
  const at::Tensor x = at::randn({300, 16}), weight = at::randn({300, 16});
  const auto on_host = host.forward(x), on_device = device.forward(x.cuda());
  EXPECT_TRUE(at::equal(on_host.routing.experts, on_device.routing.experts.cpu()));
  EXPECT_TRUE(at::equal(on_host.routing.counts, on_device.routing.counts.cpu()));
  EXPECT_LE(relative_error(on_device.y.cpu(), on_host.y), 1e-4);
  (on_host.y * weight).sum().backward();
  (on_device.y * weight.cuda()).sum().backward();
  for (const auto& p : host.named_parameters())
    EXPECT_LE(relative_error(device.named_parameters()[p.key()].grad().cpu(), p.value().grad()), 1e-3) << p.key();
}

TEST(Block, AgreesWithTheCpu_CUDA) {
  MOECOD_NEEDS_CUDA();
  agrees_with_cpu<balance::LossFree, dispatch::Grouped>();
  agrees_with_cpu<balance::EmaBias, dispatch::Grouped>();
  const int64_t before = operators::fallbacks();
  agrees_with_cpu<balance::EmaBias, dispatch::Batched>();
  EXPECT_EQ(operators::fallbacks(), before);
}

/// A training step of a mixture in bfloat16 with dispatch::Grouped: the host never waits, and no operator falls back.
template <class Router, class Expert>
void steps_without_waiting(const at::Tensor& x0, int64_t hidden = 0) {
  using Mine = Mixture<Router, Replicated<Expert, 6>, select::TopK<2>, balance::LossFree, dispatch::Grouped>;
  typename Mine::Options options;
  options.router.channels = options.experts.channels = x0.size(1);
  if constexpr (requires { options.experts.hidden; }) options.experts.hidden = hidden;
  Mine mixture(options);
  mixture.to(at::kCUDA);
  const at::Tensor x = x0.cuda().set_requires_grad(true), seed = at::ones_like(x, at::kBFloat16);
  const int64_t before = operators::fallbacks();
  const auto step = [&] {
    at::autocast::set_autocast_enabled(at::kCUDA, true);
    at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
    const at::Tensor y = mixture.forward(x.to(at::kBFloat16)).y;
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCUDA, false);
    y.backward(seed);
  };
  expect_waits_never(step);
  EXPECT_EQ(operators::fallbacks(), before);
  for (const auto& p : mixture.named_parameters())
    EXPECT_TRUE(p.value().grad().isfinite().all().template item<bool>()) << p.key();
}

TEST(Block, ATrainingStepWithGroupedDoesNotWaitForTheDevice_CUDA) {
  MOECOD_NEEDS_HOPPER();
  torch::manual_seed(1);
  steps_without_waiting<router::Position, expert::Mlp<>>(at::randn({300, 64}));
  steps_without_waiting<router::Position, expert::SwiGlu<>>(at::randn({300, 64}));
  steps_without_waiting<router::Position, expert::SwiGlu<>>(at::randn({300, 64}), /*hidden=*/40);
  steps_without_waiting<router::GlobalPool, expert::Conv<>>(at::randn({7, 64, 14, 14}));
}

/// The gradients of a step of SwiGLU experts that combine their rows, by the parameters' names.
std::map<std::string, at::Tensor> combined_gradients(bool recompute, const std::string& frozen) {
  using Mine = Mixture<router::Position, Replicated<expert::SwiGlu<>, 6>, select::TopK<2>, balance::None, dispatch::Grouped>;
  typename Mine::Options options;
  options.router.channels = options.experts.channels = 64;
  options.experts.hidden = 40;
  options.recompute = recompute;
  torch::manual_seed(1);
  Mine mixture(options);
  mixture.to(at::kCUDA, at::kBFloat16);
  torch::manual_seed(2);
  const at::Tensor x = at::randn({300, 64}, on(at::kBFloat16)).set_requires_grad(true);
  const at::Tensor seed = at::randn({300, 64}, on(at::kBFloat16));
  for (auto& p : mixture.named_parameters())
    if (!frozen.empty() && p.key().find(frozen) != std::string::npos) p.value().set_requires_grad(false);
  mixture.forward(x).y.backward(seed);
  std::map<std::string, at::Tensor> gradients{{"x", x.grad()}};
  for (const auto& p : mixture.named_parameters()) gradients[p.key()] = p.value().grad();
  return gradients;
}

TEST(Block, CombiningExpertsHaveTheSameGradientsFrozenInPartOrRecomputed_CUDA) {
  MOECOD_NEEDS_CUDA();
  const auto all = combined_gradients(false, "");
  for (const bool recompute : {false, true})
    for (const std::string frozen : {"", "up", "down", "router"}) {
      SCOPED_TRACE("frozen: " + frozen + (recompute ? ", recomputed" : ""));
      int without = 0;
      for (const auto& [name, gradient] : combined_gradients(recompute, frozen)) {
        const bool learns = frozen.empty() || name.find(frozen) == std::string::npos;
        without += !learns;
        ASSERT_EQ(gradient.defined(), learns) << name;
        if (!learns) continue;
        if (recompute)  // layer by layer
          EXPECT_LE(relative_error(gradient, all.at(name)), 1e-2) << name;
        else
          EXPECT_TRUE(at::equal(gradient, all.at(name))) << name;
      }
      EXPECT_EQ(without > 0, !frozen.empty());
    }
}

TEST(Block, DecisionAndCombineDoNotWaitForTheDevice_CUDA) {
  MOECOD_NEEDS_CUDA();
  const at::Tensor logits = at::randn({4000, 8}, on(at::kFloat)).set_requires_grad(true);
  const at::Tensor x = at::randn({4000, 64}, on(at::kBFloat16)).set_requires_grad(true);
  const at::Tensor seed = at::ones({4000, 64}, on(at::kBFloat16));
  const auto step = [&] {
    const Routing routing = select::TopK<2>::select(logits, {}, true);
    const Plan plan(routing);
    const at::Tensor y = combine(gather(x, plan), routing.weights, plan);
    return torch::autograd::grad({y}, {logits, x}, {seed});
  };
  expect_waits_never(step);
}

}  // namespace
}  // namespace moecod::on_cuda
