#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "moecod/layers/conv.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/norm.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/clip.hpp"
#include "moecod/train/ema.hpp"
#include "moecod/train/interference.hpp"
#include "moecod/train/kept_statistics.hpp"
#include "moecod/train/late_scalar.hpp"
#include "moecod/train/optimizer.hpp"
#include "moecod/train/parameter_groups.hpp"
#include "moecod/train/precision.hpp"
#include "moecod/train/rng.hpp"
#include "moecod/train/schedule.hpp"
#include "tests/train/scratch.hpp"

namespace {

using namespace moecod;
using namespace moecod::train;
using namespace moecod::test;

/// Where the tests of device code run: the CPU, and the GPU where there is one.
std::vector<at::Device> devices() {
  std::vector<at::Device> out{at::kCPU};
  if (at::hasCUDA()) out.emplace_back(at::kCUDA, 0);
  return out;
}

// ------------------------------------------------------------------------------------------- parameter_groups.hpp

struct Gate : torch::nn::Module {
  Gate() { register_parameter("weight", at::ones({2, 2})); }
};

struct Mixed : torch::nn::Module {
  Mixed() {
    register_module("conv", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions::square(1, 1, 3)));
    register_module("stack", std::make_shared<layers::Linear<layers::Stacked>>(2, 2, true, layers::Stacked{3}));
    register_module("norm", std::make_shared<layers::BatchNorm2d<layers::Stacked>>(2, layers::Stacked{3}));
    register_module("router", torch::nn::Linear(2, 2));
    register_module("router2", std::make_shared<Gate>());
    register_module("frozen", torch::nn::Conv2d(1, 1, 1));
    for (at::Tensor& parameter : (*named_children().find("frozen"))->parameters()) parameter.set_requires_grad(false);
  }
};

std::map<std::string, std::pair<double, bool>> treatment(const std::vector<ParameterGroup>& groups) {
  std::map<std::string, std::pair<double, bool>> out;
  for (const ParameterGroup& group : groups)
    for (const std::string& name : group.names) out[name] = {group.rate_factor, group.decays};
  return out;
}

TEST(ParameterGroups, DecayFollowsTheLayersKindAndFactorsThePrefix) {
  const auto groups = parameter_groups(Mixed(), {{"router", 0.01}, {"stack", 2}, {"stack.bias", 3}});
  const std::map<std::string, std::pair<double, bool>> expected{
      {"conv.weight", {1, true}},      {"conv.bias", {1, false}},   {"stack.weight", {2, true}},
      {"stack.bias", {3, false}},      {"norm.weight", {1, false}}, {"norm.bias", {1, false}},
      {"router.weight", {0.01, true}}, {"router.bias", {0.01, false}}, {"router2.weight", {1, false}}};
  EXPECT_EQ(treatment(groups), expected);
  for (const ParameterGroup& group : groups) EXPECT_EQ(group.names.size(), group.parameters.size());
}

TEST(ParameterGroups, AMisspeltPrefixIsAnErrorAFrozenOneIsNot) {
  EXPECT_NE(error_of([] { parameter_groups(Mixed(), {{"rooter", 0.1}}); }).find("rooter"), std::string::npos);
  EXPECT_NO_THROW(parameter_groups(Mixed(), {{"frozen", 0.1}}));
}

// -------------------------------------------------------------------------------------------------- optimizer.hpp

struct Pair : torch::nn::Module {
  explicit Pair(at::ScalarType dtype, at::Device device = at::kCPU) {
    torch::manual_seed(5);
    a = register_module("a", torch::nn::Linear(3, 2));
    to(device, dtype);
  }
  torch::nn::Linear a{nullptr};
};

/// Gradients of step t, from a generator of their own.
std::vector<at::Tensor> drawn_gradients(const std::vector<at::Tensor>& parameters, int64_t t) {
  std::vector<at::Tensor> out;
  torch::manual_seed(100 + t);
  for (const at::Tensor& parameter : parameters)
    out.push_back(at::randn(parameter.sizes(), at::kDouble).to(parameter.options()));
  return out;
}

void compare_with_formula(at::ScalarType dtype, at::Device device) {
  Pair module(dtype, device);
  const AdamW::Options options{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.1};
  AdamW optimizer(parameter_groups(module, {{"a.bias", 0.5}}), options);
  const auto parameters = module.parameters();
  std::vector<at::Tensor> w, m, v;
  for (const at::Tensor& parameter : parameters) {
    w.push_back(parameter.detach().to(at::kDouble, false, true));
    m.push_back(at::zeros_like(w.back()));
    v.push_back(at::zeros_like(w.back()));
  }
  for (int64_t t = 1; t <= 20; ++t) {
    const double rate = 0.01 * static_cast<double>(t);
    const auto gradients = drawn_gradients(parameters, t);
    optimizer.zero_grad();
    for (std::size_t i = 0; i < w.size(); ++i) {
      parameters[i].mutable_grad().copy_(gradients[i]);
      const at::Tensor g = gradients[i].to(at::kDouble);
      const bool is_bias = w[i].dim() == 1;
      const double r = rate * (is_bias ? 0.5 : 1.0), decay = is_bias ? 0.0 : 0.1;
      w[i] = w[i] - r * decay * w[i];
      m[i] = 0.8 * m[i] + 0.2 * g;
      v[i] = 0.95 * v[i] + 0.05 * g * g;
      const at::Tensor root = (v[i] / (1 - std::pow(0.95, t))).sqrt() + 1e-6;
      w[i] = w[i] - r * (m[i] / (1 - std::pow(0.8, t))) / root;
    }
    optimizer.step(rate);
  }
  const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
  for (std::size_t i = 0; i < w.size(); ++i)
    EXPECT_LT((parameters[i].detach().to(at::kDouble) - w[i]).abs().max().item<double>(), tolerance) << device;
}

TEST(AdamW, AgreesWithTheFormulaInFloat64) {
  for (const at::Device device : devices())
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) compare_with_formula(dtype, device);
}

TEST(AdamW, AgreesWithLibTorchsOwn) {
  Pair ours(at::kDouble), theirs(at::kDouble);
  AdamW optimizer(parameter_groups(ours), {.weight_decay = 0});
  torch::optim::AdamW reference(theirs.parameters(), torch::optim::AdamWOptions(0.02).weight_decay(0));
  for (int64_t t = 1; t <= 10; ++t) {
    const auto gradients = drawn_gradients(ours.parameters(), t);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      ours.parameters()[i].mutable_grad() = gradients[i].clone();
      theirs.parameters()[i].mutable_grad() = gradients[i].clone();
    }
    optimizer.step(0.02);
    reference.step();
  }
  for (std::size_t i = 0; i < ours.parameters().size(); ++i)
    EXPECT_TRUE(at::allclose(ours.parameters()[i], theirs.parameters()[i], 1e-12, 1e-14));
}

void check_skipping(at::Device device) {
  const auto scalar = [&](double value) { return at::full({}, value, at::TensorOptions(at::kFloat).device(device)); };
  Pair module(at::kFloat, device), skipping(at::kFloat, device);
  AdamW a(parameter_groups(module), {}), b(parameter_groups(skipping), {});
  const auto set = [](Pair& target, int64_t t, double factor = 1) {
    const auto gradients = drawn_gradients(target.parameters(), t);
    for (std::size_t i = 0; i < gradients.size(); ++i) target.parameters()[i].mutable_grad() = gradients[i] * factor;
  };
  set(module, 1);
  a.step(0.1);
  set(module, 2);
  a.step(0.1);
  set(skipping, 1);
  b.step(0.1, scalar(0));
  set(skipping, 7, std::numeric_limits<double>::infinity());
  b.step(0.1, scalar(1));
  set(skipping, 2);
  b.step(0.1, scalar(0));
  for (std::size_t i = 0; i < 2; ++i)
    EXPECT_TRUE(at::allclose(module.parameters()[i], skipping.parameters()[i], 1e-6, 1e-7)) << device;
  for (const auto& [name, tensor] : b.state()) {
    if (name.starts_with("step.")) {
      EXPECT_EQ(tensor.item<float>(), 2) << name;
    }
    EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
  }
}

TEST(AdamW, FoundInfSkipsTheStep) {
  for (const at::Device device : devices()) check_skipping(device);
}

TEST(AdamW, AMissingGradientIsAZeroGradient) {
  Pair missing(at::kFloat), zero(at::kFloat);
  AdamW a(parameter_groups(missing), {.weight_decay = 0.1}), b(parameter_groups(zero), {.weight_decay = 0.1});
  for (int64_t t = 1; t <= 3; ++t) {
    for (const at::Tensor& parameter : missing.parameters()) parameter.mutable_grad() = at::Tensor();
    b.zero_grad();
    for (Pair* module : {&missing, &zero}) module->a->bias.mutable_grad() = at::ones({2});
    a.step(0.1);
    b.step(0.1);
  }
  EXPECT_TRUE(at::equal(missing.a->weight, zero.a->weight));
  EXPECT_TRUE(at::equal(missing.a->bias, zero.a->bias));
  EXPECT_FALSE(at::equal(missing.a->weight, Pair(at::kFloat).a->weight));  // it decays
}

TEST(AdamW, AStateOfOtherParametersIsRefused) {
  Pair module(at::kFloat);
  AdamW all(parameter_groups(module), {});
  const StateDict state = all.state();
  module.a->bias.set_requires_grad(false);
  AdamW part(parameter_groups(module), {});
  EXPECT_NE(error_of([&] { part.load_state(state); }).find("a.bias"), std::string::npos);
  EXPECT_NE(error_of([&] { all.load_state(part.state()); }).find("a.bias"), std::string::npos);
}

void expect_same(const StateDict& a, const StateDict& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i].second, b[i].second)) << a[i].first;
}

// ------------------------------------------------------------------------------------------------ late_scalar.hpp

TEST(LateScalar, GivesTheValueBeforeTheLastOne) {
  for (const at::Device device : devices()) {
    LateScalar late(device);
    EXPECT_FALSE(late.before());
    for (int i = 0; i < 5; ++i) {
      late.push(at::full({1}, 0.5 + i, at::TensorOptions(at::kFloat).device(device)));
      EXPECT_EQ(late.before(), i == 0 ? std::nullopt : std::optional<double>(0.5 + i - 1)) << device;
    }
  }
  LateScalar late(at::kCPU);
  EXPECT_NE(error_of([&] { late.push(at::zeros({2})); }).find("one number"), std::string::npos);
}

// ------------------------------------------------------------------------------------------------------- muon.hpp

TEST(Muon, OrthogonalizationKeepsSingularVectorsAndEvensOutSingularValues) {
  torch::manual_seed(3);
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{16, 40}, {40, 16}, {24, 24}}) {
    const at::Tensor matrices = at::randn({3, rows, columns}, at::kDouble);
    const at::Tensor out = orthogonalized(matrices, 5);
    ASSERT_EQ(out.sizes(), matrices.sizes());
    const auto [u, s, v] = at::linalg_svd(matrices, /*full_matrices=*/false);
    // In the singular vectors' own frame the result is diagonal, each value that of the polynomial on the input's.
    at::Tensor expected = s / s.square().sum(1, true).sqrt();
    for (int i = 0; i < 5; ++i)
      expected = 3.4445 * expected - 4.7750 * expected.pow(3) + 2.0315 * expected.pow(5);
    const at::Tensor frame = u.transpose(1, 2).matmul(out).matmul(v.transpose(1, 2));
    EXPECT_LT((frame - at::diag_embed(expected)).abs().max().item<double>(), 1e-9) << rows << " x " << columns;
    const at::Tensor large = expected.masked_select(s / s.square().sum(1, true).sqrt() > 0.002);
    EXPECT_GT(large.min().item<double>(), 0.65);
    EXPECT_LT(large.max().item<double>(), 1.21);
  }
  // A spectrum over the promised range: 1, and 64 values from 0.002 of the norm up.
  const at::Tensor range = at::exp(at::linspace(std::log(0.0021), std::log(0.12), 64, at::kDouble));
  const at::Tensor values = at::cat({range, (1 - range.square().sum()).sqrt().reshape({1})});
  const at::Tensor evened = at::diagonal(orthogonalized(at::diag(values).unsqueeze(0), 5), 0, 1, 2);
  EXPECT_GT(evened.min().item<double>(), 0.68);
  EXPECT_LT(evened.max().item<double>(), 1.21);
  EXPECT_EQ(orthogonalized(at::zeros({1, 16, 16}), 5).abs().sum().item<double>(), 0);
}

struct Hidden : torch::nn::Module {
  explicit Hidden(at::Device device = at::kCPU) {
    torch::manual_seed(7);
    wide = register_module("wide", torch::nn::Linear(40, 16));
    conv = register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 20, 3)));
    second = register_module("second", torch::nn::Linear(40, 16));
    third = register_module("third", torch::nn::Linear(40, 16));
    output = register_module("output", torch::nn::Linear(16, 4));
    stacked = register_module("stacked", std::make_shared<layers::Linear<layers::Stacked>>(16, 24, true, layers::Stacked{3}));
    const at::NoGradGuard no_grad;
    stacked->weight.normal_();
    to(device);
  }
  torch::nn::Linear wide{nullptr}, second{nullptr}, third{nullptr}, output{nullptr};
  torch::nn::Conv2d conv{nullptr};
  std::shared_ptr<layers::Linear<layers::Stacked>> stacked;
};

void set_gradients(Hidden& module, int64_t t) {
  const auto parameters = module.parameters();
  const auto gradients = drawn_gradients(parameters, t);
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = gradients[i].clone();
}

TEST(Muon, AgreesWithTheFormulaAndLeavesTheRestToAdamW) {
  for (const at::Device device : devices()) {
    Hidden ours(device), plain(device);
    const Optimizer::Options options{.adamw = {.weight_decay = 0.1}, .muon = {.ratio = 10, .momentum = 0.9}};
    const std::vector<RateFactor> factors{{"third", 0.5}};
    Optimizer optimizer(parameter_groups(ours, factors), options);
    AdamW reference(parameter_groups(plain, factors), options.adamw);
    std::map<std::string, at::Tensor> weights, momenta;
    const auto is_matrix = [](const std::string& name) {
      return name != "output.weight" && name.ends_with(".weight");
    };
    for (const auto& item : ours.named_parameters())
      if (is_matrix(item.key())) weights[item.key()] = item.value().detach().to(at::kDouble, false, true);
    for (int64_t t = 1; t <= 4; ++t) {
      set_gradients(ours, t);
      set_gradients(plain, t);
      for (auto& [name, w] : weights) {
        const int64_t n = name == "stacked.weight" ? 3 : 1, rows = w.size(n == 3 ? 1 : 0);
        const at::Tensor g = ours.named_parameters()[name].grad().to(at::kDouble).reshape({n, rows, -1});
        at::Tensor& m = momenta[name];
        m = m.defined() ? 0.9 * m + g : g;
        const double scale = std::sqrt(std::max(1.0, double(rows) / double(g.size(2))));
        const at::Tensor step = orthogonalized(g + 0.9 * m, 5) * scale;
        const double rate = name == "third.weight" ? 0.05 : 0.1;
        w = w - rate * 0.1 * w - rate * step.reshape(w.sizes());
      }
      optimizer.step(0.01);
      reference.step(0.01);
    }
    for (const auto& item : ours.named_parameters()) {
      const at::Tensor now = item.value().detach().to(at::kDouble);
      if (is_matrix(item.key())) {
        EXPECT_LT((now - weights[item.key()].to(device)).abs().max().item<double>(), 1e-4) << item.key();
      } else {
        EXPECT_TRUE(at::equal(item.value(), plain.named_parameters()[item.key()])) << item.key();
      }
    }
  }
}

TEST(Muon, AStepThatIsNotFiniteLeavesNoTraceAndStateLoads) {
  Hidden a, b;
  const Optimizer::Options options{.adamw = {}, .muon = {.ratio = 10}};
  Optimizer first(parameter_groups(a), options), second(parameter_groups(b), options);
  set_gradients(a, 1);
  first.step(0.01, at::zeros({}));
  std::vector<at::Tensor> before;
  for (const auto& [name, tensor] : first.state()) before.push_back(tensor.clone());
  for (const at::Tensor& parameter : a.parameters()) before.push_back(parameter.detach().clone());
  for (at::Tensor gradient : first.gradients()) gradient.fill_(std::numeric_limits<float>::quiet_NaN());
  first.step(0.01, at::ones({}));
  std::vector<at::Tensor> after;
  for (const auto& [name, tensor] : first.state()) after.push_back(tensor);
  for (const at::Tensor& parameter : a.parameters()) after.push_back(parameter.detach());
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(at::equal(before[i], after[i])) << i;

  copy_state("parameters", state_dict(a), state_dict(b));
  second.load_state(first.state());
  set_gradients(a, 2);
  set_gradients(b, 2);
  first.step(0.01);
  second.step(0.01);
  expect_same(state_dict(a), state_dict(b));
  Optimizer adam_only(parameter_groups(b), Optimizer::Options{});
  EXPECT_NE(error_of([&] { adam_only.load_state(first.state()); }).find("wide.weight"), std::string::npos);
}

TEST(Muon, AnExpertWithoutGradientDecaysAndTakesNoStep) {
  Hidden module;
  Optimizer optimizer(parameter_groups(module), {.adamw = {.weight_decay = 0.1}, .muon = {.ratio = 10}});
  set_gradients(module, 1);
  optimizer.step(0.01);
  const at::Tensor before = module.stacked->weight.detach().clone();
  set_gradients(module, 2);
  module.stacked->weight.mutable_grad()[1].zero_();
  module.second->weight.mutable_grad() = at::Tensor();  // counts as zero
  const at::Tensor second = module.second->weight.detach().clone();
  optimizer.step(0.01);
  EXPECT_TRUE(at::allclose(module.stacked->weight[1], before[1] * 0.99, 1e-6, 0));
  EXPECT_TRUE(at::allclose(module.second->weight, second * 0.99, 1e-6, 0));
  EXPECT_GT((module.stacked->weight[0] - before[0] * 0.99).abs().max().item<double>(), 1e-3);
}

TEST(Muon, RefusesWhatIsNoMatrix) {
  Hidden module;
  EXPECT_NE(error_of([&] { Muon(parameter_groups(module), {.ratio = 1}, 0); }).find("16 x 16"), std::string::npos);
  module.to(at::kBFloat16);
  EXPECT_NE(error_of([&] { Optimizer(parameter_groups(module), {.adamw = {}, .muon = {.ratio = 1}}); }).find("float32"),
            std::string::npos);
}

// ---------------------------------------------------------------------------------------- clip.hpp, precision.hpp

TEST(Interference, IsTheAngleOfTheGradientsOverAllParametersAndTheirRatio) {
  const at::Tensor w = at::ones({2}).set_requires_grad(true), v = at::ones({1}).set_requires_grad(true);
  const at::Tensor unused = at::ones({3}).set_requires_grad(true);
  const std::vector<at::Tensor> all{w, v, unused};
  const at::Tensor task = 3 * w[0] + 4 * v[0];  // gradients (3, 0), (4)
  const auto with = [&](const at::Tensor& loss) {
    return interference(gradients_of(task, all), gradients_of(loss, all));
  };
  EXPECT_NEAR(with(10 * v.sum()).cosine, 0.8, 1e-12);
  EXPECT_NEAR(with(10 * v.sum()).ratio, 2, 1e-12);
  EXPECT_NEAR(with(-task).cosine, -1, 1e-12);
  EXPECT_NEAR(with(w[1]).cosine, 0, 1e-12);
  EXPECT_NEAR(with(unused.sum()).cosine, 0, 1e-12) << "gradients at different parameters are across";
  EXPECT_TRUE(std::isnan(with(at::zeros({})).cosine)) << "a loss without a graph";
  EXPECT_EQ(with(at::zeros({})).ratio, 0);
  EXPECT_FALSE(w.grad().defined()) << "no gradient is left behind";
  task.backward();  // the graph is still there
}

TEST(Clip, NormAgreesWithLibTorchAndSmallGradientsStay) {
  for (const at::Device device : devices()) {
    for (const double limit : {0.5, 1e6}) {
      Pair ours(at::kFloat, device), theirs(at::kFloat, device);
      std::vector<at::Tensor> gradients;
      for (std::size_t i = 0; i < 2; ++i) {
        const at::Tensor g = drawn_gradients(ours.parameters(), 1)[i];
        gradients.push_back(g.clone());
        theirs.parameters()[i].mutable_grad() = g;
      }
      const double norm = torch::nn::utils::clip_grad_norm_(theirs.parameters(), limit);
      EXPECT_NEAR(clip_norm(gradients, limit).item<double>(), norm, 1e-5);
      for (std::size_t i = 0; i < 2; ++i)
        EXPECT_TRUE(at::allclose(gradients[i], theirs.parameters()[i].grad(), 1e-6, 1e-7)) << device;
    }
  }
  EXPECT_THROW(clip_norm({}, 1), c10::Error);
  EXPECT_THROW(clip_norm({at::ones({1})}, 0), c10::Error);
}

TEST(KeptStatistics, ComeBackWhereAStepIsSkipped) {
  for (const at::Device device : devices()) {
    layers::BatchNorm2d<> norm(3);
    norm.to(device);
    KeptStatistics statistics(norm);
    const auto now = [&] { return std::array{norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()}; };
    norm.forward(at::randn({4, 3, 2, 2}, device));
    const auto good = now();
    statistics.keep();
    norm.forward(at::full({4, 3, 2, 2}, std::numeric_limits<float>::quiet_NaN(), device));
    EXPECT_TRUE(norm.running_mean.isnan().all().item<bool>());
    statistics.restore_where(at::ones({1}, device));
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(now()[i], good[i])) << i;
    statistics.keep();
    norm.forward(at::randn({4, 3, 2, 2}, device));
    const auto moved = now();
    statistics.restore_where(at::zeros({1}, device));
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(at::equal(now()[i], moved[i])) << i;
      EXPECT_FALSE(at::equal(moved[i], good[i])) << i;
    }
  }
}

TEST(LossScale, FindsWhatIsNotFiniteInEveryPrecision) {
  for (const at::Device device : devices()) {
    for (const Precision precision : {Precision::Float32, Precision::Float16}) {
      const LossScale scale(device, precision);
      const auto found = [&](double value) {
        return scale.unscale({at::ones({3}, device), at::full({2, 2}, value, device)}).item<float>();
      };
      EXPECT_EQ(found(1), 0);
      EXPECT_EQ(found(std::numeric_limits<double>::infinity()), 1);
      EXPECT_EQ(found(std::numeric_limits<double>::quiet_NaN()), 1);
    }
  }
}

TEST(LossScale, HalvesOnABadStepAndDoublesAfterGoodOnes) {
  for (const at::Device device : devices()) {
    LossScale scale(device, Precision::Float16, {.initial = 16, .growth_interval = 2});
    EXPECT_EQ(scale.apply(at::full({}, 2.0, device)).item<float>(), 32);
    const std::vector<at::Tensor> gradients{at::full({2}, 32.0, device)};
    const at::Tensor good = scale.unscale(gradients), bad = at::ones_like(good);
    EXPECT_TRUE(at::equal(gradients[0], at::full({2}, 2.0, device)));
    std::vector<float> seen;
    for (const at::Tensor& step : {bad, good, good, good, bad}) {
      scale.update(step);
      seen.push_back(scale.scale().item<float>());
    }
    EXPECT_EQ(seen, (std::vector<float>{8, 8, 16, 16, 8}));
    LossScale other(device, Precision::Float16);
    other.load_state(scale.state());
    EXPECT_EQ(other.scale().item<float>(), 8);
    LossScale none(device, Precision::BFloat16);
    none.update(bad);
    EXPECT_EQ(none.apply(at::full({}, 2.0, device)).item<float>(), 2);
    EXPECT_EQ(none.scale().item<float>(), 1);
  }
}

TEST(Autocast, HoldsForItsScopeOnly) {
  const at::Tensor x = at::ones({2, 2});
  {
    const Autocast outer(at::kCPU, Precision::BFloat16);
    EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kBFloat16);
    const Autocast inner(at::kCPU, Precision::Float32);
    EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kFloat);
  }
  EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kFloat);
  for (const at::Device device : devices()) {
    EXPECT_EQ(default_precision(device, false), Precision::Float32);
    EXPECT_EQ(default_precision(device, true) == Precision::Float32, device.is_cpu());
  }
}

TEST(Autocast, KeepsNoCastOfAParameterPastItsScope) {
  at::Tensor w = at::ones({2, 2}).set_requires_grad(true);
  const auto product = [&] {
    const Autocast autocast(at::kCPU, Precision::BFloat16);
    return at::matmul(at::ones({2, 2}), w)[0][0].item<float>();
  };
  EXPECT_EQ(product(), 2);
  {
    const torch::NoGradGuard no_grad;
    w.fill_(3);
  }
  EXPECT_EQ(product(), 6);
}

// -------------------------------------------------------------------------------------------------------- ema.hpp

TEST(Ema, FollowsTheFormulaAndCopiesBuffers) {
  layers::BatchNorm2d<> module(2);
  Ema ema(module, 0.5);
  double average = 1;
  for (int64_t s = 0; s < 12; ++s) {
    const torch::NoGradGuard no_grad;
    module.weight.fill_(static_cast<double>(s));
    module.running_mean.fill_(static_cast<double>(s));
    module.num_batches_tracked.fill_(s);
    ema.update(s);
    const double decay = std::min(0.5, static_cast<double>(1 + s) / static_cast<double>(10 + s));
    average = decay * average + (1 - decay) * static_cast<double>(s);
  }
  for (const auto& [name, tensor] : ema.state()) {
    if (name == "weight") {
      EXPECT_NEAR(tensor[0].item<double>(), average, 1e-5);
    } else if (name != "bias" && name != "running_var") {
      EXPECT_EQ(tensor.flatten()[0].item<double>(), 11) << name;
    }
  }
  EXPECT_THROW(Ema(module, 1.0), c10::Error);
}

TEST(Ema, SwapsInAndOut) {
  layers::Linear<layers::Stacked> module(2, 2, true, layers::Stacked{2});
  Ema ema(module, 0.9);
  const torch::NoGradGuard no_grad;
  module.weight.fill_(4);
  ema.update(100);
  {
    const auto averaged = ema.swap();
    EXPECT_NEAR(module.weight[0][0][0].item<double>(), 0.4, 1e-6);
  }
  EXPECT_TRUE((module.weight == 4).all().item<bool>());
  EXPECT_NEAR(ema.state()[0].second.flatten()[0].item<double>(), 0.4, 1e-6);
  EXPECT_TRUE(module.weight.requires_grad());
}

// ------------------------------------------------------------------------------------------------- checkpoint.hpp

using Checkpoints = Folder;

Checkpoint numbered(double k) {
  return {.weights = {{"w", at::full({2000}, k)}, {"b", at::full({3}, k)}},
          .about = {{"format", "pt"}},
          .state = {{"optimizer.m", at::full({2000}, k)}},
          .progress = {{"step", k}}};
}

double number_of(const Checkpoint& checkpoint) {
  const double step = checkpoint.progress.at("step");
  for (const StateDict* state : {&checkpoint.weights, &checkpoint.state})
    for (const auto& [name, tensor] : *state) EXPECT_TRUE((tensor == step).all().item<bool>()) << name << " " << step;
  return step;
}

TEST_F(Checkpoints, RoundTrip) {
  EXPECT_FALSE(checkpoint_exists(path / "last"));
  EXPECT_THROW(load_checkpoint(path / "last"), std::runtime_error);
  save_checkpoint(path / "last", numbered(1));
  save_checkpoint(path / "last", numbered(2));
  EXPECT_TRUE(checkpoint_exists(path / "last"));
  const Checkpoint back = load_checkpoint(path / "last");
  EXPECT_EQ(number_of(back), 2);
  EXPECT_EQ(back.weights.size(), 2u);
  EXPECT_EQ(back.about.at("format"), "pt");
  int files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(path)) ++files;
  EXPECT_EQ(files, 2);
}

TEST_F(Checkpoints, AMixedOrDamagedPairIsRefused) {
  save_checkpoint(path / "a", numbered(1));
  save_checkpoint(path / "b", numbered(2));
  fs::copy_file(path / "b.safetensors", path / "a.safetensors", fs::copy_options::overwrite_existing);
  EXPECT_NE(error_of([&] { load_checkpoint(path / "a"); }).find("checksum"), std::string::npos);

  std::string bytes = text_of(path / "b.safetensors");
  bytes[bytes.size() - 5] ^= 1;
  std::ofstream(path / "b.safetensors", std::ios::binary) << bytes;
  EXPECT_NE(error_of([&] { load_checkpoint(path / "b"); }).find("checksum"), std::string::npos);

  std::ofstream(path / "a.resume.safetensors", std::ios::binary) << "nonsense";
  EXPECT_NE(error_of([&] { load_checkpoint(path / "a"); }), "");
  save_checkpoint(path / "a", numbered(3));  // a damaged pair does not stop a new save
  EXPECT_EQ(number_of(load_checkpoint(path / "a")), 3);
}

TEST_F(Checkpoints, EveryPlaceWhereASaveCanStopLeavesAPair) {
  const fs::path stem = path / "last";
  const auto file = [&](const std::string& end) { return fs::path(stem.string() + end); };
  save_checkpoint(path / "new", numbered(2));
  const auto put_new = [&](const std::string& from, const std::string& to) {
    fs::copy_file((path / "new").string() + from, file(to), fs::copy_options::overwrite_existing);
  };

  save_checkpoint(stem, numbered(1));
  put_new(".safetensors", ".next.safetensors");  // stopped before the resume file
  EXPECT_EQ(number_of(load_checkpoint(stem)), 1);
  put_new(".resume.safetensors", ".resume.safetensors");  // stopped after it
  EXPECT_EQ(number_of(load_checkpoint(stem)), 2);
  EXPECT_FALSE(fs::exists(file(".next.safetensors")));
  EXPECT_EQ(number_of(load_checkpoint(stem)), 2);

  save_checkpoint(stem, numbered(1));
  put_new(".safetensors", ".next.safetensors");
  put_new(".resume.safetensors", ".resume.safetensors");
  std::ofstream(file(".next.safetensors.tmp.1.1")) << "left by a killed save";
  save_checkpoint(stem, numbered(3));  // a save right after a stop
  EXPECT_EQ(number_of(load_checkpoint(stem)), 3);
  EXPECT_FALSE(fs::exists(file(".next.safetensors.tmp.1.1")));
}

TEST_F(Checkpoints, AKilledSaveLeavesALoadablePair) {
  const fs::path stem = path / "last";
  save_checkpoint(stem, numbered(0));
  std::mt19937 random(7);
  double last = 0;
  for (int round = 0; round < 40; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        for (int k = 1;; ++k) save_checkpoint(stem, numbered(last + k));
      } catch (...) {
        ::_exit(9);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int>(200, 25000)(random)));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the saving process ended by itself";
    const double now = number_of(load_checkpoint(stem));
    EXPECT_GE(now, last);
    last = now;
  }
  EXPECT_GT(last, 10);
}

// ----------------------------------------------------------------------------- all together: a run that was resumed

struct Net : torch::nn::Module {
  Net() {
    conv = register_module("conv", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions::square(3, 4, 3)));
    norm = register_module("norm", std::make_shared<layers::BatchNorm2d<>>(4));
    head = register_module("head", std::make_shared<layers::Linear<>>(4, 1));
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor y = norm->forward(conv->forward(x)).relu().mean({2, 3});
    return head->forward(at::dropout(y, 0.3, is_training()));
  }
  std::shared_ptr<layers::Conv2d<>> conv;
  std::shared_ptr<layers::BatchNorm2d<>> norm;
  std::shared_ptr<layers::Linear<>> head;
};

struct Training {
  Net net;
  AdamW optimizer{parameter_groups(net, {{"head", 0.5}}), AdamW::Options{}};
  Ema ema{net, 0.9};
  LossScale scale{at::kCPU, Precision::Float32};
  Schedule rate{.shape = Schedule::Shape::OneCycle, .peak = 0.05, .total_steps = 12};
  int64_t step = 0;

  void train_until(int64_t end) {
    for (; step < end; ++step) {
      const at::Tensor x = at::randn({4, 3, 5, 5}), target = x.mean({1, 2, 3}).unsqueeze(1);
      optimizer.zero_grad();
      scale.apply((net.forward(x) - target).square().mean()).backward();
      const at::Tensor found_inf = scale.unscale(optimizer.gradients());
      clip_norm(optimizer.gradients(), 0.5);
      optimizer.step(rate(step), found_inf);
      scale.update(found_inf);
      ema.update(step);
    }
  }
  void save(const fs::path& stem) const {
    Checkpoint out{.weights = state_dict(net), .progress = {{"step", step}}};
    add_state(out.state, "optimizer.", optimizer.state());
    add_state(out.state, "ema.", ema.state());
    add_state(out.state, "scale.", scale.state());
    add_state(out.state, "random.", random_state(at::kCPU));
    save_checkpoint(stem, out);
  }
  void load(const fs::path& stem) {
    const Checkpoint saved = load_checkpoint(stem);
    io::load_state(net, saved.weights);
    optimizer.load_state(part_of_state(saved.state, "optimizer."));
    ema.load_state(part_of_state(saved.state, "ema."));
    scale.load_state(part_of_state(saved.state, "scale."));
    set_random_state(part_of_state(saved.state, "random."), at::kCPU);
    step = saved.progress.at("step");
  }
};

TEST_F(Checkpoints, AResumedRunRepeatsAnUnbrokenOneBitForBit) {
  seed_generators(11);
  Training straight;
  straight.train_until(12);
  const at::Tensor next = at::rand({4});

  seed_generators(11);
  Training first;
  first.train_until(5);
  first.save(path / "last");
  seed_generators(99);
  Training second;
  second.load(path / "last");
  second.train_until(12);
  EXPECT_TRUE(at::equal(at::rand({4}), next));
  expect_same(state_dict(second.net), state_dict(straight.net));
  expect_same(second.optimizer.state(), straight.optimizer.state());
  expect_same(second.ema.state(), straight.ema.state());
  EXPECT_FALSE(at::equal(state_dict(first.net)[0].second, state_dict(straight.net)[0].second));
}

TEST(RandomNumbers, RanksDifferAndSeedsRepeat) {
  const auto draw = [](uint64_t seed, int64_t rank) {
    seed_generators(seed, rank);
    return at::rand({4});
  };
  EXPECT_TRUE(at::equal(draw(1, 0), draw(1, 0)));
  EXPECT_FALSE(at::equal(draw(1, 0), draw(1, 1)));
  EXPECT_FALSE(at::equal(draw(1, 1), draw(2, 0)));
  EXPECT_THROW(set_random_state({}, at::kCPU), c10::Error);
}

}  // namespace
