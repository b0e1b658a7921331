#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/utils.h>

#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "moecod/core/later.hpp"
#include "moecod/core/options.hpp"
#include "moecod/core/pyramid.hpp"
#include "moecod/core/recompute.hpp"
#include "moecod/core/state.hpp"
#include "moecod/core/tree.hpp"
#include "moecod/layers/conv.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/norm.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;

// ------------------------------------------------------------------------------------------------------ later.hpp

TEST(Later, ComputesOnceAndRecordsGradientsWhoeverAsksFirst) {
  const at::Tensor w = at::ones({3}).set_requires_grad(true);
  int calls = 0;
  const Later twice([&] { return ++calls, w * 2; });
  EXPECT_EQ(calls, 0);
  {
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(twice().requires_grad());
  }
  twice().sum().backward();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(w.grad().sum().item<float>(), 6);
  EXPECT_FALSE([&] {
    const torch::NoGradGuard no_grad;
    return Later([&] { return w * 2; });
  }()().requires_grad());
}

TEST(Later, AsksAgainAfterAnError) {
  bool fails = true;
  const Later value([&] { return fails ? throw std::runtime_error("no memory") : at::ones({2}); });
  EXPECT_THROW(value(), std::runtime_error);
  fails = false;
  EXPECT_EQ(value().numel(), 2);
}

// ---------------------------------------------------------------------------------------------------- options.hpp

enum class Colour { Red, Green };

struct Inner {
  double rate = 0.5;
  std::optional<int64_t> limit;
  static constexpr auto options = std::make_tuple(option(&Inner::rate, "rate", "a share", between(0, 1)),
                                                  option(&Inner::limit, "limit", "a bound", at_least(1)));
};

struct Outer {
  bool fast = false;
  Colour colour = Colour::Green;
  std::string mode = "a";
  Inner inner;
  static constexpr auto options =
      std::make_tuple(option(&Outer::fast, "fast", "be fast"),
                      option(&Outer::colour, "colour", "the colour", choices("red", "green")),
                      option(&Outer::mode, "mode", "the mode", choices("a", "b")), nested(&Outer::inner, "inner-"));
};

using test::error_of;

TEST(Options, ListsNestedOnesInPlaceWithTheirPrefix) {
  std::string flags;
  Outer outer;
  for_each_option(outer, [&](const std::string& flag, auto&, const auto&, std::string_view) { flags += flag + " "; });
  EXPECT_EQ(flags, "fast colour mode inner-rate inner-limit ");
}

TEST(Options, ChecksNameTheFlagTheExpectedAndTheGiven) {
  Outer outer;
  check_options(outer);
  outer.inner.rate = 1.5;
  EXPECT_EQ(error_of([&] { check_options(outer); }), "--inner-rate: expected a number in [0, 1], got 1.5");
  outer = {};
  outer.inner.limit = 0;
  EXPECT_EQ(error_of([&] { check_options(outer); }), "--inner-limit: expected an integer >= 1, got 0");
  outer = {};
  outer.mode = "c";
  EXPECT_EQ(error_of([&] { check_options(outer); }), "--mode: expected one of a, b, got c");
  outer = {};
  outer.inner.rate = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(error_of([&] { check_options(outer); }), "");
}

TEST(Options, ParseUsesTheWholeTextAndRoundTrips) {
  EXPECT_EQ(parse_option<double>("x", option_text(1e-4, Anything{}), Anything{}), 1e-4);
  EXPECT_EQ(parse_option<Colour>("c", "red", choices("red", "green")), Colour::Red);
  EXPECT_EQ(parse_option<int64_t>("n", "-3", Anything{}), -3);
  for (const char* bad : {"", "3.5", "3x", "99999999999999999999"})
    EXPECT_NE(error_of([&] { parse_option<int64_t>("n", bad, Anything{}); }).find("--n: expected an integer"),
              std::string::npos)
        << bad;
  EXPECT_NE(error_of([&] { parse_option<double>("x", "0", above(0)); }).find("a number > 0"), std::string::npos);
}

// ------------------------------------------------------------------------------------------------------- tree.hpp

TEST(Tree, MapKeepsShapeCopiesUnlistedMembersAndSkipsUndefinedLeaves) {
  const Encoder encoder;
  const Scene scene{at::ones({2, 3}), {at::ones({2}), at::Tensor(), at::full({2}, 3.0)}, &encoder};
  const Scene twice = tree::map([](const at::Tensor& leaf) { return leaf * 2; }, scene);
  EXPECT_EQ(twice.encode, &encoder);
  EXPECT_TRUE(at::equal(twice.image, scene.image * 2));
  ASSERT_EQ(twice.pyramid.size(), 3u);
  EXPECT_FALSE(twice.pyramid[1].defined());
  EXPECT_TRUE(at::equal(twice.pyramid[2], at::full({2}, 6.0)));
  EXPECT_EQ(tree::leaves(scene).size(), 3u);
}

TEST(Tree, WithLeavesInvertsLeaves) {
  using Mixed = std::tuple<at::Tensor, std::array<at::Tensor, 2>, std::vector<Levels>>;
  const Mixed mixed{at::rand({2}), {at::rand({2}), at::Tensor()}, {{{at::rand({2}), at::rand({2})}, 7, 9}}};
  const auto leaves = tree::leaves(mixed);
  ASSERT_EQ(leaves.size(), 4u);
  const Mixed back = tree::with_leaves(mixed, leaves);
  const auto again = tree::leaves(back);
  for (std::size_t i = 0; i < leaves.size(); ++i) EXPECT_TRUE(again[i].is_same(leaves[i])) << i;
  EXPECT_EQ(std::get<2>(back)[0].width, 9);
}

TEST(Tree, CatJoinsWhatSlicesMake) {
  const Pyramid whole{at::rand({5, 2}), at::rand({5, 3, 2})};
  std::vector<Pyramid> parts;
  for (const auto& [begin, end] : {std::pair{0, 2}, std::pair{2, 3}, std::pair{3, 5}})
    parts.push_back(tree::map([&](const at::Tensor& leaf) { return leaf.slice(0, begin, end); }, whole));
  const Pyramid joined = tree::cat(parts);
  EXPECT_EQ(tree::rows(parts[0]), 2);
  EXPECT_TRUE(at::equal(joined[0], whole[0]));
  EXPECT_TRUE(at::equal(joined[1], whole[1]));
}

TEST(Tree, RowsMustAgree) {
  EXPECT_THROW(tree::rows(Pyramid{}), c10::Error);
  EXPECT_THROW(tree::rows(Pyramid{at::ones({2}), at::ones({3})}), c10::Error);
  EXPECT_THROW(tree::rows(at::ones({})), c10::Error);
}

// ------------------------------------------------------------------------------------------------------ state.hpp

struct StackOf : torch::nn::Module, StackedStorage {
  StackOf() {
    register_module("each", std::make_shared<layers::Linear<layers::Stacked>>(2, 3, true, layers::Stacked{2}));
  }
  int64_t stack_size() const override { return 2; }
};

struct Host : torch::nn::Module {
  Host() {
    experts = register_module("experts", std::make_shared<StackOf>());
    norm = register_module("norm", std::make_shared<layers::BatchNorm2d<>>(4));
    gain = register_parameter("gain", at::ones({1}));
  }
  std::shared_ptr<StackOf> experts;
  std::shared_ptr<layers::BatchNorm2d<>> norm;
  at::Tensor gain;
};

TEST(State, NamesStackedExpertsOneAKeyAsViewsOfTheStack) {
  Host host;
  std::string names;
  const StateDict state = state_dict(host);
  for (const auto& [name, tensor] : state) names += name + " ";
  EXPECT_EQ(names,
            "gain experts.0.weight experts.0.bias experts.1.weight experts.1.bias "
            "norm.weight norm.bias norm.running_mean norm.running_var norm.num_batches_tracked ");
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : state_dict(host))
    if (name == "experts.1.weight") at::Tensor(tensor).fill_(5);
  const at::Tensor stack = host.experts->parameters()[0];
  EXPECT_TRUE((stack[1] == 5).all().item<bool>());
  EXPECT_FALSE((stack[0] == 5).any().item<bool>());
}

// -------------------------------------------------------------------------------------------------- recompute.hpp

/// Convolution, batch statistics and dropout: all that a careless second pass gets wrong.
struct Block : torch::nn::Module {
  Block() {
    conv = register_module("conv", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions::square(3, 4, 3)));
    norm = register_module("norm", std::make_shared<layers::BatchNorm2d<>>(4));
  }
  at::Tensor forward(const at::Tensor& x) {
    return at::dropout(norm->forward(conv->forward(x)).relu(), 0.5, is_training());
  }
  std::shared_ptr<layers::Conv2d<>> conv;
  std::shared_ptr<layers::BatchNorm2d<>> norm;
};

struct Trace {
  at::Tensor output, next_random;
  std::vector<at::Tensor> gradients, buffers;
};

/// One training step of a block, `run` says how its forward is called.
template <class Run>
Trace trace(bool input_gradient, Run&& run, at::Device device = at::kCPU) {
  torch::manual_seed(3);
  Block block;
  block.to(device);
  at::Tensor x = at::randn({2, 3, 6, 5}, device).set_requires_grad(input_gradient);
  Trace out;
  out.output = run(block, x);
  out.next_random = at::rand({3}, device);
  (out.output * out.output).sum().backward();
  if (input_gradient) out.gradients.push_back(x.grad());
  for (const at::Tensor& parameter : block.parameters()) out.gradients.push_back(parameter.grad());
  for (const at::Tensor& buffer : block.buffers()) out.buffers.push_back(buffer);
  out.buffers.push_back(at::rand({3}, device));  // the generator after the backward pass
  return out;
}

void expect_equal(const Trace& a, const Trace& b) {
  EXPECT_TRUE(at::equal(a.output, b.output));
  EXPECT_TRUE(at::equal(a.next_random, b.next_random));
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (std::size_t i = 0; i < a.gradients.size(); ++i) {
    ASSERT_TRUE(b.gradients[i].defined()) << i;
    EXPECT_TRUE(at::equal(a.gradients[i], b.gradients[i])) << i;
  }
  ASSERT_EQ(a.buffers.size(), b.buffers.size());
  for (std::size_t i = 0; i < a.buffers.size(); ++i) EXPECT_TRUE(at::equal(a.buffers[i], b.buffers[i])) << i;
}

const auto plainly = [](Block& block, const at::Tensor& x) { return block.forward(x); };
const auto recomputed = [](Block& block, const at::Tensor& x) {
  return recompute([&block](const at::Tensor& in) { return block.forward(in); }, x, block.parameters());
};

TEST(Recompute, GradientsBuffersAndRandomNumbersAreThoseOfThePlainPassBitForBit) {
  expect_equal(trace(true, plainly), trace(true, recomputed));
  expect_equal(trace(false, plainly), trace(false, recomputed));
  if (!at::hasCUDA()) return;
  at::globalContext().setDeterministicCuDNN(true);
  expect_equal(trace(true, plainly, at::kCUDA), trace(true, recomputed, at::kCUDA));
}

TEST(Recompute, NestsAndRunsOnceMorePerLevelOnly) {
  int calls = 0;
  const auto nested_twice = [&](Block& block, const at::Tensor& x) {
    const auto inner = [&](const at::Tensor& in) {
      ++calls;
      return block.forward(in);
    };
    return recompute([&, inner](const at::Tensor& in) { return recompute(inner, in, block.parameters()); }, x,
                     block.parameters());
  };
  expect_equal(trace(true, plainly), trace(true, nested_twice));
  EXPECT_EQ(calls, 3);
  EXPECT_FALSE(recomputing());
}

TEST(Recompute, TreesInAndOutWithLeavesThatNeedNoGradient) {
  const at::Tensor w = at::rand({3}).set_requires_grad(true);
  const at::Tensor a = at::rand({2, 3}).set_requires_grad(true), b = at::rand({2, 3});
  const at::Tensor whole = at::arange(2);
  const Scene scene{a, {b, whole}};
  const auto fn = [&](const Scene& in) {
    return std::tuple(in.image * w, Pyramid{in.pyramid[0] * 2, in.pyramid[1] + 1}, at::Tensor());
  };

  const auto [image, pyramid, absent] = recompute(fn, scene, {w});
  EXPECT_FALSE(absent.defined());
  EXPECT_TRUE(image.requires_grad());
  EXPECT_FALSE(pyramid[1].requires_grad());
  EXPECT_EQ(pyramid[1].scalar_type(), at::kLong);
  image.sum().backward();
  EXPECT_TRUE(at::equal(a.grad(), w.detach().expand({2, 3})));
  EXPECT_TRUE(at::allclose(w.grad(), a.detach().sum(0)));
  EXPECT_FALSE(b.grad().defined());
}

TEST(Recompute, IsAPlainCallWithoutGradients) {
  const torch::NoGradGuard no_grad;
  int calls = 0;
  const at::Tensor w = at::ones({2}).set_requires_grad(true);
  const at::Tensor y = recompute([&](const at::Tensor& x) { return ++calls, x * w; }, at::ones({2}), {w});
  EXPECT_FALSE(y.requires_grad());
  EXPECT_EQ(calls, 1);
}

/// What a distributed reducer hangs on each parameter.
struct CountingHook : torch::autograd::FunctionPostHook {
  explicit CountingHook(int& count) : count_(count) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    ++count_;
    return outputs;
  }
  int& count_;
};

TEST(Recompute, EveryParameterAccumulatesExactlyOnceAsAReducerNeeds) {
  Block block;
  const auto parameters = block.parameters();
  std::vector<int> seen(parameters.size(), 0);
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    accumulators.push_back(torch::autograd::impl::grad_accumulator(parameters[i]));
    accumulators.back()->add_post_hook(std::make_unique<CountingHook>(seen[i]));
  }
  recomputed(block, at::randn({2, 3, 4, 4})).sum().backward();
  for (const int count : seen) EXPECT_EQ(count, 1);
}

TEST(Recompute, FrozenParametersGetNoGradient) {
  Block block;
  block.conv->weight.set_requires_grad(false);
  recomputed(block, at::randn({2, 3, 4, 4})).sum().backward();
  EXPECT_FALSE(block.conv->weight.grad().defined());
  EXPECT_TRUE(block.norm->weight.grad().defined());
}

TEST(Recompute, RepeatsUnderTheAutocastOfTheFirstPass) {
  const auto autocast = [](bool with_recompute) {
    torch::manual_seed(1);
    layers::Linear<> linear(8, 8);
    const at::Tensor x = at::randn({4, 8}).set_requires_grad(true);
    std::vector<at::ScalarType> seen;
    const auto fn = [&](const at::Tensor& in) {
      const at::Tensor y = linear.forward(in);
      seen.push_back(y.scalar_type());
      return y.to(at::kFloat);
    };
    at::Tensor y;
    {
      const AutocastGuard guard({at::kCPU, true, at::kBFloat16, true});
      y = with_recompute ? recompute(fn, x, linear.parameters()) : fn(x);
      y = y + linear.forward(x).to(at::kFloat);  // a cast that was kept without a graph would lose this gradient
    }
    y.sum().backward();
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    for (const at::ScalarType type : seen) EXPECT_EQ(type, at::kBFloat16);
    EXPECT_EQ(seen.size(), with_recompute ? 2u : 1u);
    return std::pair(x.grad().clone(), linear.weight.grad().clone());
  };
  const auto plain = autocast(false), repeated = autocast(true);
  EXPECT_TRUE(at::allclose(plain.first, repeated.first, 1e-2, 1e-2));
  EXPECT_TRUE(at::allclose(plain.second, repeated.second, 1e-2, 1e-2));
}

TEST(Recompute, AChangedInputIsAnErrorNotAWrongGradient) {
  const at::Tensor w = at::ones({2}).set_requires_grad(true);
  at::Tensor x = at::ones({2});
  const at::Tensor y = recompute([&](const at::Tensor& in) { return in * w; }, x, {w});
  x.add_(1);
  EXPECT_THROW(y.sum().backward(), c10::Error);
}

}  // namespace
