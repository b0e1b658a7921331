// The model level as a whole: shapes, sizes, which parameters which stage trains, recomputation, policy swaps.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <type_traits>

#include "examples/camo_model.hpp"
#include "examples/model_level_recipe.hpp"
#include "moecod/core/walk.hpp"
#include "moecod/io/map_image.hpp"
#ifdef MOECOD_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>

#include "moecod/cuda/graph_recorder.hpp"
#endif
#include "moecod/model/answers.hpp"
#include "moecod/model/model_level.hpp"
#include "moecod/moe/balance/switch.hpp"
#include "moecod/moe/dispatch/concurrent.hpp"
#include "moecod/moe/swap.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/objective.hpp"
#include "moecod/train/replicas.hpp"
#include "moecod/train/validate.hpp"
#include "tests/laws/support.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;

CamoOptions small() {
  CamoOptions options;
  options.backbone = "pvt_v2_b0";
  options.sinet_width = options.pranet_width = options.zoomnet_width = options.ujsc_width = 16;
  options.router_width = 8;
  return options;
}

struct ModelLevelTest : ::testing::Test {
  void SetUp() override {
    at::manual_seed(3);
    model = std::make_unique<Camo>(camo_options(small()));
    images = at::randn({3, 3, 64, 96});
    masks = at::rand({3, 1, 64, 96}).gt(0.8).to(at::kFloat);
  }
  std::unique_ptr<Camo> model;
  at::Tensor images, masks;
};

TEST_F(ModelLevelTest, AnswersWithItsRouting) {
  model->eval();
  const auto out = (*model)(images, WithRouting{});
  EXPECT_EQ(out.logits.sizes(), (std::vector<int64_t>{3, 1, 64, 96}));
  EXPECT_EQ(out.top_k_indices.sizes(), (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(out.top_k_indices.scalar_type(), at::kInt);
  EXPECT_EQ(out.top_k_weights.sizes(), (std::vector<int64_t>{3, 2}));
  EXPECT_TRUE(at::allclose(out.top_k_weights.sum(1), at::ones({3})));
  EXPECT_TRUE(at::equal((*model)(images), out.logits));
}

TEST_F(ModelLevelTest, AskingAllExpertsGivesTheMixturesOwnAnswer) {
  model->eval();
  const at::NoGradGuard no_grad;
  const Answers answers = ask_all(*model, images);
  ASSERT_EQ(answers.experts.size(), 4u);
  EXPECT_TRUE(at::allclose(answers.routed(), (*model)(images), 1e-4, 1e-5));
}

TEST_F(ModelLevelTest, AGivenRoutingRunsOneExpert) {
  model->eval();
  const at::NoGradGuard no_grad;
  const Scene scene = model->look(images);
  const Answers answers = ask_all(*model, images);
  for (int64_t e = 0; e < 4; ++e) {
    const auto out = model->mixture->run(scene, Routing::to(e, 3, 4));
    EXPECT_TRUE(at::allclose(out.y, answers.experts[std::size_t(e)], 1e-4, 1e-5)) << "expert " << e;
  }
}

/// The names of the parameters with a gradient that is not zero everywhere, after a step of a stage.
std::set<std::string> trained_by(Camo& model, const train::Stage& stage, const at::Tensor& images,
                                 const at::Tensor& masks) {
  train::enter(stage, model);
  train::Responsibility responsibility(4);
  for (auto& item : model.named_parameters()) item.value().mutable_grad() = at::Tensor();
  // Two drawn experts a step: all pairs, so that each expert has been drawn.
  const std::vector<std::vector<int64_t>> draws =
      stage.exposure == train::Exposure::drawn ? std::vector<std::vector<int64_t>>{{0, 1}, {2, 3}}
                                               : std::vector<std::vector<int64_t>>{{}};
  for (const auto& draw : draws) {
    const Scene scene = model.look(images);
    Routing routing;
    if (!draw.empty()) {
      routing = Routing::to(draw, images.size(0), 4);
    } else if (stage.exposure == train::Exposure::only) {
      routing = Routing::to(stage.expert, images.size(0), 4);
    } else {
      const Routing own = model.mixture->route(scene);
      routing = Routing::all(images.size(0), 4);
      routing.logits = own.logits;
      routing.scores = own.scores;
      routing.weights = own.dense_weights();
      if (stage.objective.detach_gates) routing.weights = routing.weights.detach();
    }
    auto out = model.mixture->run(scene, routing);
    const auto losses = train::own_losses(*model.mixture->experts, out.parts, masks, 0.5);
    train::total_loss(stage.objective, out, losses, responsibility, masks, 0.5).backward();
  }
  std::set<std::string> names;
  for (const auto& item : model.named_parameters()) {
    if (!item.value().grad().defined()) continue;
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
    if (item.value().grad().abs().max().item<float>() > 0) names.insert(item.key());
  }
  return names;
}

train::Stage stage_of(int64_t number, int64_t expert = -1) {
  CamoOptions model;
  train::TrainerOptions trainer;
  RecipeOptions recipe;
  apply_preset("full", number, model, trainer, recipe);
  return make_stage(number, expert, recipe);
}

TEST_F(ModelLevelTest, EveryParameterGetsAGradientInItsStageAndNoOther) {
  {
    // Attention that fades in from a weight of 0 passes nothing at the very start, and at this width a hidden unit of
    // a channel attention may rest: look at a model that is under way.
    const at::NoGradGuard no_grad;
    for (auto& item : model->named_parameters()) {
      if (item.value().numel() == 1 && item.value().item<float>() == 0) item.value().fill_(0.5);
      if (item.key().ends_with("down.bias")) item.value().fill_(0.5);
    }
  }
  struct Case {
    train::Stage stage;
    std::vector<std::string> prefixes;
  };
  for (const Case& c : {Case{stage_of(1), {"backbone.", "mixture.experts."}},
                        Case{stage_of(1, 0), {"backbone.", "mixture.experts.0."}},
                        Case{stage_of(1, 2), {"mixture.experts.2."}}, Case{stage_of(2), {"mixture.router."}},
                        Case{stage_of(3), {"backbone.", "mixture."}}}) {
    const std::set<std::string> got = trained_by(*model, c.stage, images, masks);
    for (const auto& item : model->named_parameters()) {
      const bool wanted = std::any_of(c.prefixes.begin(), c.prefixes.end(),
                                      [&](const std::string& p) { return item.key().starts_with(p); });
      EXPECT_EQ(got.contains(item.key()), wanted) << c.stage.name << ": " << item.key();
      EXPECT_EQ(item.value().requires_grad(), wanted) << c.stage.name << ": " << item.key();
    }
  }
}

TEST_F(ModelLevelTest, FrozenPartsStayInEvalModeAndTheirStatisticsStand) {
  const train::Stage stage = stage_of(2);
  train::enter(stage, *model);
  EXPECT_FALSE(model->backbone->is_training());
  EXPECT_FALSE(model->mixture->experts->is_training());
  EXPECT_TRUE(model->mixture->router->is_training());
  EXPECT_TRUE(model->mixture->balance->is_training());
  std::vector<at::Tensor> before;
  for (const auto& buffer : model->mixture->experts->buffers()) before.push_back(buffer.clone());
  const Scene scene = model->look(images);
  (void)model->mixture->run(scene, Routing::all(3, 4));
  const auto after = model->mixture->experts->buffers();
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(at::equal(before[i], after[i]));
}

TEST_F(ModelLevelTest, RecomputationChangesNeitherGradientsNorBuffers) {
  CamoOptions options = small();
  options.gradient_checkpointing = true;
  Camo again(camo_options(options));
  io::load_state(again, state_dict(*model));
  model->train();
  again.train();
  const Routing routing = Routing::all(3, 4);
  for (Camo* m : {model.get(), &again}) m->mixture->run(m->look(images), routing).y.square().mean().backward();
  const auto other = again.named_parameters();
  for (const auto& item : model->named_parameters()) {
    if (!item.value().grad().defined()) continue;
    ASSERT_TRUE(other[item.key()].grad().defined()) << item.key();
    EXPECT_TRUE(at::allclose(item.value().grad(), other[item.key()].grad(), 1e-4, 1e-6)) << item.key();
  }
  const auto buffers = again.named_buffers();
  for (const auto& item : model->named_buffers()) EXPECT_TRUE(at::equal(item.value(), buffers[item.key()])) << item.key();
}

TEST(ModelLevelSize, TheDefaultsHold85MillionParameters) {
  const Camo model(camo_options({}));
  const auto count = [](const torch::nn::Module& part) {
    int64_t n = 0;
    for (const auto& parameter : part.parameters()) n += parameter.numel();
    return double(n) / 1e6;
  };
  EXPECT_NEAR(count(model), 85.0, 2.0);
  EXPECT_NEAR(count(*model.mixture->router), 8.0, 0.5);
  for (const auto& expert : model.mixture->experts->children()) {
    EXPECT_GE(count(*expert), 12.5);
    EXPECT_LE(count(*expert), 14.0);
  }
}

TEST(ModelLevelSwap, OneLineSwapsAPolicyAndParametersLoadAcross) {
  using Ablated = swap_t<Camo, balance::Switch>;
  static_assert(std::is_same_v<Ablated::mixture_type::balance_type, balance::Switch>);
  static_assert(std::is_same_v<Ablated::mixture_type::experts_type, Camo::mixture_type::experts_type>);
  static_assert(std::is_same_v<swap_t<Ablated, balance::LossFree>, Camo>);
}

TEST(Replicas, TwoThreadsGiveTheSameStepEveryTime) {
  const auto run = [] {
    at::manual_seed(5);
    const auto make = [] { return std::make_unique<Camo>(camo_options(small())); };
    const auto model = make();
    train::Replicas<Camo> replicas(*model, 2, make);
    at::manual_seed(6);
    const at::Tensor images = at::randn({2, 2, 3, 64, 64});
    replicas.run([&](int64_t r, Camo& replica) {
      replica.train();
      replica.forward(images[r]).y.square().mean().backward();
    });
    replicas.reduce_gradients();
    at::Tensor counts = model->mixture->balance->counts.clone();
    replicas.add_counts(counts);
    EXPECT_EQ(counts.sum().item<int64_t>(), 8);  // 4 pictures, top-2
    std::vector<at::Tensor> gradients;
    for (const auto& p : model->parameters()) gradients.push_back(p.grad().defined() ? p.grad().clone() : at::zeros({1}));
    return gradients;
  };
  const auto first = run(), second = run();
  double total = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(at::equal(first[i], second[i]));
    total += first[i].abs().sum().item<double>();
  }
  EXPECT_GT(total, 0);
}

TEST(Walk, NamesParentsBeforeTheirChildrenAndTakesAModuleOnTheStack) {
  Camo model(camo_options(small()));
  std::vector<std::string> names;
  for_each_module(model, [&](const std::string& name, torch::nn::Module&) { names.push_back(name); });
  const auto place = [&](const char* name) { return std::find(names.begin(), names.end(), name) - names.begin(); };
  EXPECT_EQ(names.front(), "");
  EXPECT_LT(place("mixture"), place("mixture.experts"));
  EXPECT_LT(place("mixture.experts"), place("mixture.experts.3"));
  EXPECT_LT(place("mixture.experts.3"), std::ptrdiff_t(names.size()));
}

TEST(ImageIou, CountsPixelsAndIsZeroWhereBothAreEmpty) {
  const at::Tensor logits = at::tensor({1.0F, 1.0F, -1.0F, -1.0F, -1.0F, -1.0F, -1.0F, -1.0F}).view({2, 1, 2, 2});
  const at::Tensor masks = at::tensor({1.0F, 0.0F, 1.0F, 0.0F, 0.0F, 0.0F, 0.0F, 0.0F}).view({2, 1, 2, 2});
  EXPECT_TRUE(at::allclose(train::image_iou(logits, masks), at::tensor({1.0F / 3, 0.0F})));
}

TEST(DeviceBatch, IsNormalisedWithImageNetStatistics) {
  data::Batch batch;
  batch.size = 2;
  batch.height = 1;
  batch.width = 3;
  for (int i = 0; i < 18; ++i) batch.images.push_back(uint8_t(14 * i));
  batch.masks = {0, 127, 128, 255, 1, 200};
  const at::Tensor bytes = at::arange(18, at::kDouble).view({2, 1, 3, 3}).permute({0, 3, 1, 2}) * 14;
  const train::DeviceBatch out = train::to_device(std::move(batch), at::kCPU);
  ASSERT_EQ(out.images.sizes(), (std::vector<int64_t>{2, 3, 1, 3}));
  EXPECT_TRUE(out.images.is_contiguous());
  for (int64_t c = 0; c < 3; ++c) {
    const double mean = train::kImageNetMean[std::size_t(c)], deviation = train::kImageNetDeviation[std::size_t(c)];
    EXPECT_LT((out.images.select(1, c) - (bytes.select(1, c) / 255 - mean) / deviation).abs().max().item<double>(), 1e-5);
  }
  EXPECT_TRUE(at::equal(out.masks, at::tensor({0.0F, 0.0F, 1.0F, 1.0F, 0.0F, 1.0F}).view({2, 1, 1, 3})));
}

TEST(MapImage, RoundsProbabilitiesAtTheSizeAsked) {
  const Image image = io::map_image(at::tensor({-100.0F, 0.0F, 100.0F}).view({1, 3}), 2, 3);
  ASSERT_EQ(image.height, 2);
  ASSERT_EQ(image.width, 3);
  EXPECT_EQ((std::vector<int>(image.pixels.begin(), image.pixels.end())), (std::vector<int>{0, 128, 255, 0, 128, 255}));
}

#ifdef MOECOD_WITH_CUDA
template <class Dispatch>
using Dispatched =
    ModelLevel<backbone::Any, Mixture<Camo::mixture_type::router_type, Camo::mixture_type::experts_type,
                                      Camo::mixture_type::select_type, Camo::mixture_type::balance_type, Dispatch>>;

template <class Model>
struct ModelLevelGraphs : ::testing::Test {};
using GraphedModels = ::testing::Types<Camo, Dispatched<dispatch::Concurrent>>;
TYPED_TEST_SUITE(ModelLevelGraphs, GraphedModels);

/// Losses and weights of training steps whose routing and sizes change, so that experts see other numbers of pictures, beside
/// those of plain calls one after the other. In float64, where nothing but a mistake could make a difference that one sees.
TYPED_TEST(ModelLevelGraphs, TrainAndAnswerAsPlainCalls_CUDA) {
  MOECOD_SKIP_WITHOUT_CUDA();
  const auto device = at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kDouble);
  const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromPool());
  const auto run = [&]<class Model>(std::type_identity<Model>, const char* backbone, bool graphed) {
    at::manual_seed(3);
    CamoOptions options = small();
    options.backbone = backbone;
    Model model(camo_options<Model>(options));
    model.to(device.device(), at::kDouble);
    if (graphed) replay_graphs(model, std::make_shared<cuda::GraphRecorder>());
    model.train();
    const std::vector<at::Tensor> parameters = model.parameters();
    std::vector<at::Tensor> out;
    for (int step = 0; step < 16; ++step) {
      const int64_t height = step / 4 % 2 == 0 ? 64 : 128;
      const at::Tensor images = at::randn({4, 3, height, 96}).to(device);
      const at::Tensor masks = at::rand({4, 1, height, 96}).gt(0.8).to(device);
      const Scene scene = model.look(images);
      Routing routing = model.mixture->route(scene);
      const at::Tensor first = at::arange(4, at::kInt).remainder(1 + step % 4).unsqueeze(1);
      routing = Routing::given(at::cat({first, (first + 1).remainder(4)}, 1).to(device.device()), routing.weights, 4);
      const auto answer = model.mixture->run(scene, routing);
      const at::Tensor loss = at::binary_cross_entropy_with_logits(answer.y, masks);
      loss.backward();
      out.push_back(loss.detach());
      const at::NoGradGuard no_grad;
      for (const at::Tensor& parameter : parameters) {
        if (!parameter.grad().defined()) continue;
        parameter.add_(parameter.grad(), -0.01);
        parameter.mutable_grad().zero_();
      }
    }
    model.eval();
    const at::NoGradGuard no_grad;
    at::manual_seed(4);
    for (int step = 0; step < 4; ++step) out.push_back(model(at::randn({2 + step % 2, 3, 64, 96}).to(device)));
    for (const at::Tensor& tensor : parameters) out.push_back(tensor.detach());
    for (const at::Tensor& tensor : model.buffers()) out.push_back(tensor);
    return out;
  };
  for (const char* backbone : {"pvt_v2_b0", "swin_tiny_patch4_window7_224"}) {
    const auto plain = run(std::type_identity<Camo>(), backbone, false);
    const auto graphed = run(std::type_identity<TypeParam>(), backbone, true);
    ASSERT_EQ(plain.size(), graphed.size());
    for (std::size_t i = 0; i < plain.size(); ++i)
      EXPECT_LE((plain[i] - graphed[i]).abs().max().template item<double>(), 1e-9 * (1 + plain[i].abs().max().template item<double>()))
          << backbone << ' ' << i;
  }
}
#endif

}  // namespace
