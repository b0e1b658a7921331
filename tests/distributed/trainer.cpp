// The trainer on several ranks: against one process, resumed, told to stop, and with a loss that is not finite.
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/conv.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "moecod/core/keep_modes.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/moe/moe.hpp"
#include "moecod/train/image_iou.hpp"
#include "moecod/train/scored_rows.hpp"
#include "moecod/train/trainer.hpp"
#include "tests/distributed/job.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using namespace moecod::test;

/// Squares brighter than what surrounds them.
struct Squares {
  int64_t count;
  int64_t size() const { return count; }
  data::Sample sample(int64_t, int64_t index) const {
    data::Sample out;
    out.image = Image(16, 16, 3);
    out.mask = Image(16, 16, 1);
    for (int64_t i = 0; i < 256; ++i) {
      const bool inside = i / 16 >= index % 5 && i / 16 < index % 5 + 7 && i % 16 >= index % 7 && i % 16 < index % 7 + 6;
      out.mask.pixels[std::size_t(i)] = inside ? 255 : 0;
      for (int64_t c = 0; c < 3; ++c)
        out.image.pixels[std::size_t(3 * i + c)] = uint8_t((inside ? 90 : 60) + (i * 37 + index * 11 + c * 5) % 80);
    }
    return out;
  }
};

template <class Dispatch>
struct NetOf : torch::nn::Module {
  using Block = Mixture<router::GlobalPool, Replicated<expert::Conv<>, 6>, select::TopK<2>, balance::LossFree, Dispatch>;
  NetOf() {
    typename Block::Options options;
    options.router.channels = options.experts.channels = 8;
    stem = this->register_module("stem", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)));
    mixture = register_module("mixture", std::make_shared<Block>(options));
    head = register_module("head", torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 1, 1)));
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto out = mixture->forward(stem->forward(x));
    routing = out.routing;
    return head->forward(out.y);
  }
  torch::nn::Conv2d stem{nullptr}, head{nullptr};
  std::shared_ptr<Block> mixture;
  Routing routing;
};

struct Score {
  double iou = 0;
  Monitor::Report routing;
  std::string summary() const { return std::to_string(iou); }
  void add_to(nlohmann::ordered_json& json, bool) const { json["iou"] = iou; }
};

/// What happens to this rank at its `at`-th call of loss, counted from 0.
struct Fault {
  int64_t at = -1;
  enum class Kind { not_a_number, terminate } kind = Kind::not_a_number;
};
Fault fault;
int64_t calls = 0;

template <class Net>
struct NetTask {
  using model_type = Net;
  using score_type = Score;
  NetTask(const train::Stage&, at::Device, int64_t) {}
  std::monostate draw(int64_t) { return {}; }
  at::Tensor loss(int64_t, Net& model, const at::Tensor& images, const at::Tensor& masks, std::monostate, double) {
    at::Tensor out = at::binary_cross_entropy_with_logits(model.forward(images), masks);
    if (calls++ == fault.at) {
      // Infinite, with finite gradients: the hardest kind to notice.
      if (fault.kind == Fault::Kind::not_a_number) out = out + std::numeric_limits<double>::infinity();
      if (fault.kind == Fault::Kind::terminate) std::raise(SIGTERM);
    }
    return out;
  }
  Score score(Net& model, data::Loader<data::AnySource>& loader, distributed::Group& group) {
    const KeepModes keep(model);
    const at::NoGradGuard no_grad;
    model.eval();
    train::ScoredRows rows;
    Monitor monitor;
    loader.start(0);
    while (auto batch = loader.next()) {
      const train::DeviceBatch data = train::to_device(std::move(*batch), job().device);
      rows.add(train::image_iou(model.forward(data.images), data.masks), data.indices);
      monitor.observe(model.routing);
    }
    return {rows.of_all_ranks(group).mean().item<double>(), train::gathered(monitor, group).report()};
  }
  StateDict state() const { return {}; }
};

/// A run of a stage, with all that its owner keeps.
template <class Dispatch>
struct TrainingOf {
  using Net = NetOf<Dispatch>;
  explicit TrainingOf(train::TrainerOptions options, std::shared_ptr<distributed::Group> group = job().group)
      : options_(options), group_(std::move(group)) {
    torch::manual_seed(4);
    model = std::make_shared<Net>();
    model->to(job().device);
    trainer = std::make_unique<train::Trainer<NetTask<Net>>>(
        *model, train::Stage{.name = "all", .trains = {"stem", "mixture", "head"}}, options_, job().device,
        std::function<std::unique_ptr<Net>()>(), group_);
  }
  void fit() {
    calls = 0;
    data::Loader<data::AnySource> validation(
        data::AnySource(Squares{11}), {.batch = 2, .height = 16, .width = 16, .train = false, .workers = 0,
                                       .rank = group_->rank(), .world = group_->world()});
    trainer->fit(
        data::AnySource(Squares{53}), validation, nullptr, [&](const auto& result) { results.push_back(result); },
        [&] {
          saved = train::Checkpoint{.weights = {}, .about = {}, .state = {}, .progress = trainer->progress()};
          for (const auto& [name, tensor] : state_dict(*model)) saved.weights.emplace_back(name, tensor.clone());
          for (const auto& [name, tensor] : trainer->state()) saved.state.emplace_back(name, tensor.clone());
        });
  }
  void load(const train::Checkpoint& from) {
    const at::NoGradGuard no_grad;
    const distributed::GatheredExperts all(*model, group_);
    train::copy_state("model", from.weights, state_dict(*model));
    trainer->load_state(from);
  }
  train::TrainerOptions options_;
  std::shared_ptr<distributed::Group> group_;
  std::shared_ptr<Net> model;
  std::unique_ptr<train::Trainer<NetTask<Net>>> trainer;
  std::vector<train::EpochResult<Score>> results;
  train::Checkpoint saved;
};

using Training = TrainingOf<dispatch::Batched>;
using SpreadTraining = TrainingOf<dispatch::ExpertParallel<dispatch::Batched>>;

train::TrainerOptions options_of(int64_t batch) {
  train::TrainerOptions out;
  out.epochs = 3;
  out.batch_size = batch;
  out.size = 32;
  out.amp = false;
  out.workers = 0;
  out.use_ema = true;
  return out;
}

/// Bit for bit on the CPU; on GPUs, where that is not promised (docs/distributed.md), to rounding.
void expect_same(const train::Checkpoint& a, const train::Checkpoint& b) {
  EXPECT_EQ(a.progress.dump(), b.progress.dump());
  for (const auto& [mine, theirs] : {std::pair(a.weights, b.weights), std::pair(a.state, b.state)}) {
    ASSERT_EQ(mine.size(), theirs.size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const at::Tensor &x = mine[i].second, &y = theirs[i].second;
      if (job().device.is_cpu() || !x.is_floating_point()) {
        EXPECT_TRUE(at::equal(x, y)) << mine[i].first;
      } else {
        const double apart = (x - y).to(at::kDouble).norm().item<double>(), size = y.to(at::kDouble).norm().item<double>();
        EXPECT_LE(apart, 1e-5 * size) << mine[i].first;
      }
    }
  }
}

/// All ranks hold the same parameters, bit for bit.
void expect_agreement(torch::nn::Module& model) {
  for (const auto& item : model.named_parameters()) {
    if (item.key().find("experts") != std::string::npos && distributed::has_spread_experts(model)) continue;
    const at::Tensor all = job().group->gather(item.value());
    for (int64_t r = 1; r < world(); ++r) EXPECT_TRUE(at::equal(all[r], all[0])) << item.key();
    EXPECT_TRUE(all.isfinite().all().item<bool>()) << item.key();
  }
}

/// A run that stops behind its first epoch and is resumed is the unbroken one. Returns its model.
template <class Run>
auto expect_resumed_as_unbroken() {
  Run whole(options_of(2));
  whole.fit();
  train::TrainerOptions first = options_of(2);
  first.stop_after = 1;
  Run begun(first);
  begun.fit();
  Run resumed(options_of(2));
  resumed.load(begun.saved);
  resumed.fit();
  resumed.saved.progress["options"] = whole.saved.progress["options"];
  expect_same(resumed.saved, whole.saved);
  return resumed.model;
}

class TrainerOverRanks : public testing::Test {
 protected:
  void SetUp() override { fault = {}; }
  void TearDown() override { job().group->barrier(); }
};

TEST_F(TrainerOverRanks, WithSynchronisedStatisticsIsOneProcessWithTheWholeBatch) {
  train::TrainerOptions shared = options_of(2), whole = options_of(2 * world());
  shared.sync_bn = whole.sync_bn = true;
  Training ranks(shared), alone(whole, std::make_shared<distributed::Alone>());
  ranks.fit();
  alone.fit();
  ASSERT_EQ(ranks.results.size(), 3U);
  for (std::size_t e = 0; e < 3; ++e) EXPECT_NEAR(ranks.results[e].loss, alone.results[e].loss, 2e-4) << e;
  EXPECT_TRUE(at::equal(ranks.model->mixture->balance->bias, alone.model->mixture->balance->bias));
  EXPECT_LT(ranks.results[2].loss, ranks.results[0].loss);
  expect_agreement(*ranks.model);
}

// Experts spread over ranks: clipping, skipping and averages agree, and what is saved is whole.
TEST_F(TrainerOverRanks, WithSpreadExpertsIsOneProcessWithTheWholeBatch) {
  train::TrainerOptions shared = options_of(2), whole = options_of(2 * world());
  shared.sync_bn = whole.sync_bn = true;
  shared.clip_norm = whole.clip_norm = 0.05;  // always at work
  SpreadTraining ranks(shared);
  Training alone(whole, std::make_shared<distributed::Alone>());
  ranks.fit();
  alone.fit();
  EXPECT_EQ(distributed::has_spread_experts(*ranks.model), world() > 1);
  for (std::size_t e = 0; e < 3; ++e) EXPECT_NEAR(ranks.results[e].loss, alone.results[e].loss, 2e-4) << e;
  ASSERT_EQ(ranks.saved.weights.size(), alone.saved.weights.size());
  for (std::size_t i = 0; i < ranks.saved.weights.size(); ++i)
    EXPECT_EQ(ranks.saved.weights[i].first, alone.saved.weights[i].first);
  expect_agreement(*ranks.model);
}

TEST_F(TrainerOverRanks, WithSpreadExpertsResumesBitForBit) {
  expect_resumed_as_unbroken<SpreadTraining>();
  // A loss that is not finite on one rank is skipped by the experts of all.
  if (rank() + 1 == world()) fault = {.at = 3};
  train::TrainerOptions one = options_of(2);
  one.epochs = 1;
  SpreadTraining faulty(one);
  faulty.fit();
  for (const auto& [name, tensor] : faulty.saved.weights)
    EXPECT_TRUE(!tensor.is_floating_point() || tensor.isfinite().all().template item<bool>()) << name;
}

// The same weights on any number of ranks have the same score, to the last bit.
TEST_F(TrainerOverRanks, ValidatesAsOneProcess) {
  Training run(options_of(2));
  Score scores[2];
  for (const bool together : {true, false}) {
    const auto group = together ? job().group : std::make_shared<distributed::Alone>();
    data::Loader<data::AnySource> loader(data::AnySource(Squares{11}),
                                         {.batch = 1, .height = 16, .width = 16, .train = false, .workers = 0,
                                          .rank = group->rank(), .world = group->world()});
    train::Stage stage;
    NetTask<NetOf<dispatch::Batched>> task(stage, job().device, 1);
    scores[together] = task.score(*run.model, loader, *group);
  }
  EXPECT_EQ(scores[0].iou, scores[1].iou);
  EXPECT_EQ(scores[0].routing.counts, scores[1].routing.counts);
  EXPECT_EQ(scores[0].routing.rows, 11);
  EXPECT_NEAR(scores[0].routing.entropy, scores[1].routing.entropy, 1e-12);
  EXPECT_NEAR(scores[0].routing.batch_max_violation, scores[1].routing.batch_max_violation, 1e-12);
}

TEST_F(TrainerOverRanks, ResumesBitForBit) {
  expect_agreement(*expect_resumed_as_unbroken<Training>());
}

TEST_F(TrainerOverRanks, OneThatIsToldToStopStopsAllBehindTheSameStep) {
  Training whole(options_of(2));
  whole.fit();
  if (rank() + 1 == world()) fault = {.at = 4, .kind = Fault::Kind::terminate};
  Training stopped(options_of(2));
  const std::string error = error_of([&] { stopped.fit(); });
  EXPECT_NE(error.find("stopped by SIGTERM in epoch 1 behind step 6"), std::string::npos) << error;
  EXPECT_EQ(stopped.saved.progress["begin"], 6);
  fault = {};
  Training resumed(options_of(2));
  resumed.load(stopped.saved);
  resumed.fit();
  expect_same(resumed.saved, whole.saved);
}

TEST_F(TrainerOverRanks, ALossThatIsNotFiniteIsSkippedByAllRanks) {
  if (rank() + 1 == world()) fault = {.at = 3};
  train::TrainerOptions options = options_of(2);
  options.epochs = 1;
  Training run(options);
  run.fit();
  expect_agreement(*run.model);
  EXPECT_TRUE(std::isfinite(run.results[0].loss));
  fault = {};
  Training whole(options);
  whole.fit();
  EXPECT_FALSE(at::equal(whole.model->stem->weight, run.model->stem->weight));
  // Too many in a row end the run, on every rank.
  options.max_bad_steps = 1;
  if (rank() == 0) fault = {.at = 2};
  Training ended(options);
  EXPECT_NE(error_of([&] { ended.fit(); }).find("not finite in 1 steps in a row"), std::string::npos);
}

TEST_F(TrainerOverRanks, AnotherNumberOfRanksIsRefused) {
  train::TrainerOptions first = options_of(2);
  first.stop_after = 1;
  Training begun(first);
  begun.fit();
  begun.saved.progress["ranks"] = world() + 1;
  Training resumed(options_of(2));
  const std::string error = error_of([&] { resumed.load(begun.saved); });
  EXPECT_NE(error.find("the run to continue has " + std::to_string(world() + 1) + " ranks"), std::string::npos) << error;
}

}  // namespace
