#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/utils.h>

#include <string>

#include "moecod/core/zero_gradients.hpp"
#include "moecod/distributed/share.hpp"
#include "tests/distributed/job.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using namespace moecod::test;

TEST(Group, SumsOverRanksInPlace) {
  for (const auto type : {at::kFloat, at::kDouble, at::kLong, at::kInt, at::kByte}) {
    at::Tensor t = at::full({3, 2}, rank() + 1, on_device(type));
    const at::Tensor same = t;
    job().group->sum(t);
    EXPECT_TRUE(at::equal(same, at::full({3, 2}, world() * (world() + 1) / 2, on_device(type)))) << type;
  }
}

TEST(Group, CarriesTensorsOfAnotherDeviceAndLayout) {
  at::Tensor host = at::arange(6, at::kLong).view({2, 3}).t();  // on the CPU, not contiguous
  job().group->sum(host);
  EXPECT_TRUE(at::equal(host, at::arange(6, at::kLong).view({2, 3}).t() * world()));
}

TEST(Group, GathersInTheOrderOfTheRanks) {
  const at::Tensor all = job().group->gather(at::full({2}, rank(), on_device(at::kByte)));
  ASSERT_EQ(all.sizes(), (std::vector<int64_t>{world(), 2}));
  for (int64_t r = 0; r < world(); ++r) EXPECT_EQ(all[r].sum().item<int64_t>(), 2 * r);
  EXPECT_EQ(job().group->gather(at::full({}, rank(), on_device())).dim(), 1);
}

TEST(Group, BroadcastsTensorsOfSeveralTypes) {
  const at::Tensor floats = at::full({3}, rank(), on_device()), counts = at::full({}, 7 + rank(), on_device(at::kLong));
  job().group->broadcast({floats, counts});
  EXPECT_EQ(floats.sum().item<float>(), 0);
  EXPECT_EQ(counts.item<int64_t>(), 7);
}

TEST(Group, ExchangesRowsAlsoWhereARankHasNone) {
  // Rank r sends r + s rows to rank s, each holding 100 r + s; and nothing to itself.
  std::vector<int64_t> send, receive;
  std::vector<at::Tensor> rows{at::zeros({0, 4}, on_device())};
  for (int64_t s = 0; s < world(); ++s) {
    send.push_back(s == rank() ? 0 : rank() + s);
    receive.push_back(send.back());
    rows.push_back(at::full({send.back(), 4}, 100 * rank() + s, on_device()));
  }
  const at::Tensor got = job().group->exchange(at::cat(rows), send, receive);
  std::vector<at::Tensor> expected{at::zeros({0, 4}, on_device())};
  for (int64_t s = 0; s < world(); ++s) expected.push_back(at::full({receive[std::size_t(s)], 4}, 100 * s + rank(), on_device()));
  EXPECT_TRUE(at::equal(got, at::cat(expected)));
}

TEST(Share, GathersRowsOfUnevenNumbers) {
  const at::Tensor all = distributed::gather_rows(*job().group, at::full({rank(), 2}, rank(), on_device()));
  int64_t expected = 0, at_row = 0;
  for (int64_t r = 0; r < world(); ++r) expected += r;
  ASSERT_EQ(all.size(0), expected);
  for (int64_t r = 0; r < world(); ++r)
    for (int64_t i = 0; i < r; ++i) EXPECT_EQ(all[at_row++][0].item<float>(), float(r));
}

TEST(Share, ModelsBecomeRankZeros) {
  torch::manual_seed(rank());
  torch::nn::Linear model(4, 3);
  model->to(job().device);
  distributed::share_model(*job().group, *model);
  const at::Tensor all = job().group->gather(model->weight);
  for (int64_t r = 1; r < world(); ++r) EXPECT_TRUE(at::equal(all[r], all[0]));
}

TEST(Share, ModelsThatDifferAreRefusedOnEveryRank) {
  if (world() == 1) GTEST_SKIP() << "one rank";
  torch::nn::Linear model(4, rank() == 1 ? 5 : 3);
  EXPECT_NE(error_of([&] { distributed::share_model(*job().group, *model); }).find("rank 1 differs from rank 0"),
            std::string::npos);
}

/// Four linear maps in a row, of which the last is used by none; `skip` leaves out the second in this rank's graph.
struct Chain : torch::nn::Module {
  Chain() {
    for (int i = 0; i < 4; ++i) layers.push_back(register_module(std::to_string(i), torch::nn::Linear(5, 5)));
  }
  at::Tensor forward(at::Tensor x, bool skip) {
    x = layers[0]->forward(x).tanh();
    if (!skip) x = layers[1]->forward(x).tanh();
    x = layers[2]->forward(x);
    return skip ? with_zero_gradients(x, layers[1]->parameters()) : x;
  }
  std::vector<torch::nn::Linear> layers;
};

TEST(GradientSync, GivesTheMeanOverRanksWithAccumulationAndIdleParameters) {
  torch::manual_seed(1);
  Chain model, reference;
  model.to(job().device);
  reference.to(job().device);
  for (auto& item : reference.named_parameters()) item.value().set_data(model.named_parameters()[item.key()].clone());
  const auto sync = job().group->average_gradients(model.parameters());
  for (int step = 0; step < 4; ++step) {
    sync->begin_step();
    const at::Tensor x = at::randn({2 * world(), 6, 5}, at::kFloat).to(job().device);
    const auto loss_of = [&](Chain& chain, int64_t r, int64_t micro) {
      return chain.forward(x[2 * r + micro], (r + step) % 2 == 1).square().mean();
    };
    loss_of(model, rank(), 0).backward();
    sync->last_backward(loss_of(model, rank(), 1)).backward();
    for (int64_t r = 0; r < world(); ++r)
      for (int64_t micro = 0; micro < 2; ++micro) (loss_of(reference, r, micro) / double(world())).backward();
    for (const auto& item : model.named_parameters()) {
      const at::Tensor& mine = item.value().grad();
      const at::Tensor theirs = reference.named_parameters()[item.key()].grad();
      ASSERT_TRUE(mine.defined()) << item.key();
      EXPECT_TRUE(at::allclose(mine, theirs.defined() ? theirs : at::zeros_like(mine), 1e-5, 1e-7)) << item.key();
      const at::Tensor all = job().group->gather(mine);
      for (int64_t r = 1; r < world(); ++r) EXPECT_TRUE(at::equal(all[r], all[0])) << item.key();
      mine.zero_();
      if (theirs.defined()) theirs.zero_();
    }
  }
}

// The gradient of a depthwise convolution of a channels-last map is made with strides that differ from those of its
// weight [C, 1, 3, 3] in the dimension of size 1.
TEST(GradientSync, GradientsLieAsTheirParametersAndNobodyWarns) {
  struct Heard : c10::WarningHandler {
    void process(const c10::Warning& warning) override { text += warning.msg(); }
    std::string text;
  } heard;
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(4, 4, 3).groups(4));
  conv->to(job().device);
  {
    const c10::WarningUtils::WarnAlways always;
    const c10::WarningUtils::WarningHandlerGuard listen(&heard);
    const auto sync = job().group->average_gradients(conv->parameters());
    for (int step = 0; step < 2; ++step) {
      const at::Tensor map = at::ones({2, 5, 5, 4}, on_device()).permute({0, 3, 1, 2});
      sync->begin_step();
      sync->last_backward(conv->forward(map).square().mean()).backward();
      for (at::Tensor& parameter : conv->parameters()) parameter.mutable_grad().zero_();
    }
  }
  EXPECT_EQ(heard.text.find("strides"), std::string::npos) << heard.text;
  EXPECT_EQ(conv->weight.grad().strides(), conv->weight.strides());
}

TEST(GradientSync, AParameterThatBecomesIdleLaterIsAnError) {
  torch::manual_seed(1);
  Chain model;
  model.to(job().device);
  const auto sync = job().group->average_gradients(model.parameters());
  const at::Tensor x = at::ones({6, 5}, on_device());
  sync->begin_step();
  sync->last_backward(model.forward(x, false).sum()).backward();
  sync->begin_step();
  sync->last_backward(model.layers[0]->forward(x).sum()).backward();
  EXPECT_NE(error_of([&] { sync->begin_step(); }).find("finished reduction"), std::string::npos);
}

}  // namespace
