// Calls replayed from device graphs, by a recorder that needs no device: what it records it does again.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "moecod/core/graphed_calls.hpp"

namespace {

using namespace moecod;

/// Records by doing the work, and replays by doing it again.
struct Repeater final : GraphRecorder {
  struct Graph final : DeviceGraph {
    explicit Graph(std::function<void()> work) : work(std::move(work)) {}
    void replay() override { work(); }
    std::function<void()> work;
  };
  bool ready() const override { return on; }
  Pool new_pool() override { return {++pools, 0}; }
  std::unique_ptr<DeviceGraph> record(Pool, const std::function<void()>& work) override {
    ++recorded;
    work();
    return std::make_unique<Graph>(work);
  }
  bool on = true;
  uint64_t pools = 0;
  int recorded = 0;
};

/// Two outputs of two inputs, of which the second output has no gradient.
struct Toy : torch::nn::Module {
  Toy() {
    a = register_parameter("a", at::randn({3, 3}, at::kDouble));
    b = register_parameter("b", at::randn({3}, at::kDouble));
  }
  std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const std::tuple<at::Tensor, at::Tensor>& in) {
    ++calls;
    const auto& [x, y] = in;
    const at::Tensor z = x.matmul(a).tanh() + y * b;
    return {z, z.gt(0), (z * z).sum(1)};
  }
  at::Tensor a, b;
  int calls = 0;
};

struct GraphedCallsTest : ::testing::Test {
  void SetUp() override {
    at::manual_seed(1);
    toy = std::make_shared<Toy>();
    recorder = std::make_shared<Repeater>();
    calls.recorder = recorder;
  }
  auto call(const at::Tensor& x, const at::Tensor& y) {
    return calls(*toy, [this](const auto& in) { return toy->forward(in); }, std::make_tuple(x, y));
  }
  /// The outputs and all gradients of one call, by graphs or plainly.
  std::vector<at::Tensor> all(bool graphed, at::Tensor x, at::Tensor y) {
    x = x.detach().clone().set_requires_grad(true);
    const auto [z, sign, squares] = graphed ? call(x, y) : toy->forward({x, y});
    std::vector<at::Tensor> out{z.detach(), sign, squares.detach()};
    const auto found = torch::autograd::grad({z.sin().sum() + squares.sum()}, {x, toy->a, toy->b});
    out.insert(out.end(), found.begin(), found.end());
    return out;
  }
  static void expect_same(const std::vector<at::Tensor>& one, const std::vector<at::Tensor>& other) {
    ASSERT_EQ(one.size(), other.size());
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], other[i])) << i;
  }
  static at::Tensor random(int64_t rows) { return at::randn({rows, 3}, at::kDouble); }

  std::shared_ptr<Toy> toy;
  std::shared_ptr<Repeater> recorder;
  GraphedCalls calls;
};

TEST_F(GraphedCallsTest, OutputsAndGradientsAreThoseOfPlainCalls) {
  for (const int64_t rows : {4, 2, 4, 2, 4, 5, 2}) {
    const at::Tensor x = random(rows), y = random(rows);
    expect_same(all(true, x, y), all(false, x, y));
    toy->a.data().add_(0.1);  // in place, as an optimizer does
  }
  EXPECT_EQ(recorder->recorded, 4);  // forward and backward, for 4 and 2 rows; 5 were seen once
  EXPECT_EQ(recorder->pools, 1U);
}

TEST_F(GraphedCallsTest, ResultsAreTheCallersToKeep) {
  const at::Tensor x = random(4), y = random(4);
  for (int i = 0; i < 2; ++i) all(true, x, y);
  const auto before = all(true, x, y), kept = before;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& tensor : kept) copies.push_back(tensor.clone());
  all(true, random(4), random(4));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(kept[i], copies[i])) << i;
}

TEST_F(GraphedCallsTest, ACallWhileActivationsAreWantedIsPlain) {
  const at::Tensor y = random(4);
  for (int i = 0; i < 2; ++i) all(true, random(4), y);
  const at::Tensor first = random(4).set_requires_grad(true), second = random(4).set_requires_grad(true);
  auto one = std::get<0>(call(first, y));
  const int plain = toy->calls;
  const int replayed = recorder->recorded;
  auto two = std::get<0>(call(second, y));
  EXPECT_EQ(toy->calls, plain + 1);
  EXPECT_EQ(recorder->recorded, replayed);
  const at::Tensor g = torch::autograd::grad({one.sum() + two.sum()}, {first})[0];
  const at::Tensor expected = torch::autograd::grad({std::get<0>(toy->forward({first, y})).sum()}, {first})[0];
  EXPECT_TRUE(at::equal(g, expected));
}

TEST_F(GraphedCallsTest, OtherSizesThanTheLeadingOneHaveMemoryOfTheirOwn) {
  const auto doubled = [](const at::Tensor& x) { return x * 2; };
  for (const int64_t width : {3, 4, 3, 4, 3}) {
    const at::Tensor x = at::randn({2, width}, at::kDouble);
    EXPECT_TRUE(at::equal(calls(*toy, doubled, x), x * 2));
  }
  EXPECT_EQ(recorder->pools, 2U);
}

TEST_F(GraphedCallsTest, ASecondBackwardPassIsRefused) {
  const at::Tensor x = random(4).set_requires_grad(true), y = random(4);
  for (int i = 0; i < 2; ++i) all(true, random(4), y);
  const at::Tensor z = std::get<0>(call(x, y)).sum();
  z.backward({}, /*retain_graph=*/true);
  EXPECT_THROW(z.backward(), c10::Error);
}

TEST_F(GraphedCallsTest, AnOutputThatNobodyLooksAtGivesNoGradient) {
  const at::Tensor x = random(4).set_requires_grad(true), y = random(4);
  for (int i = 0; i < 2; ++i) all(true, random(4), y);
  const at::Tensor by_graph = torch::autograd::grad({std::get<2>(call(x, y)).sum()}, {x})[0];
  const at::Tensor plain = torch::autograd::grad({std::get<2>(toy->forward({x, y})).sum()}, {x})[0];
  EXPECT_TRUE(at::equal(by_graph, plain));
}

TEST_F(GraphedCallsTest, ModesAndWhatIsTrainedHaveRecordingsOfTheirOwn) {
  const at::Tensor x = random(4), y = random(4);
  for (int i = 0; i < 2; ++i) all(true, x, y);
  EXPECT_EQ(recorder->recorded, 2);
  {
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(std::get<0>(call(x, y)), std::get<0>(toy->forward({x, y}))));
  }
  EXPECT_EQ(recorder->recorded, 3);  // nothing to record backward
  toy->b.set_requires_grad(false);
  for (int i = 0; i < 3; ++i) {
    const at::Tensor z = std::get<0>(call(x, y));
    EXPECT_TRUE(at::equal(torch::autograd::grad({z.sum()}, {toy->a})[0],
                          torch::autograd::grad({std::get<0>(toy->forward({x, y})).sum()}, {toy->a})[0]));
  }
  EXPECT_EQ(recorder->recorded, 5);
  toy->eval();
  for (int i = 0; i < 2; ++i) call(x, y);
  EXPECT_EQ(recorder->recorded, 7);
}

TEST_F(GraphedCallsTest, WithoutARecorderAndOnStreamsThatCannotBeRecordedCallsArePlain) {
  const at::Tensor x = random(4), y = random(4);
  recorder->on = false;
  for (int i = 0; i < 3; ++i) all(true, x, y);
  EXPECT_EQ(recorder->recorded, 0);
  calls.recorder = nullptr;
  for (int i = 0; i < 3; ++i) all(true, x, y);
  EXPECT_EQ(toy->calls, 6);
}

TEST_F(GraphedCallsTest, WhatCannotBeRecordedSaysSo) {
  struct Refusing final : GraphRecorder {
    bool ready() const override { return true; }
    Pool new_pool() override { return {}; }
    std::unique_ptr<DeviceGraph> record(Pool, const std::function<void()>&) override {
      TORCH_CHECK(false, "operation not permitted when stream is capturing");
    }
  };
  calls.recorder = std::make_shared<Refusing>();
  const at::Tensor x = random(4), y = random(4);
  call(x, y);
  try {
    call(x, y);
    FAIL();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find("could not be recorded: operation not permitted"), std::string::npos) << message;
  }
}

}  // namespace
