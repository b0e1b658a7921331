// The feature level as a whole: shapes, parts that can be left out, gradients, routing by position, policy swaps.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <type_traits>

#include "moecod/backbone/convnext.hpp"
#include "moecod/backbone/pvt_v2.hpp"
#include "moecod/core/state.hpp"
#include "moecod/expert/contrast.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/edge.hpp"
#include "moecod/expert/frequency.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/expert/texture.hpp"
#include "moecod/model/feature_level.hpp"
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/balance/switch.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/dispatch/masked.hpp"
#include "moecod/moe/experts/distinct.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/router/position.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "moecod/moe/swap.hpp"
#include "moecod/train/feature_level_task.hpp"
#include "moecod/train/stage.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;

using Plain = Mixture<router::GlobalPool, Replicated<expert::Conv<>, 6>, select::TopK<2>, balance::EmaBias,
                      dispatch::Grouped>;
using Features = FeatureLevel<backbone::PvtV2B0, Plain>;
using Six = Distinct<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>, expert::Texture<>,
                     expert::Frequency<>>;

template <class Model>
std::unique_ptr<Model> small() {
  at::manual_seed(3);
  typename Model::Options options;
  options.head.width = 16;
  return std::make_unique<Model>(options);
}

at::Tensor sample_images(int64_t count = 3) {
  at::manual_seed(4);
  return at::randn({count, 3, 64, 96});
}

at::Tensor sample_masks() { return sample_images().select(1, 0).unsqueeze(1).gt(0.8).to(at::kFloat); }

template <class Head>
inline constexpr bool reads_all_levels = true;
template <bool S, bool R, bool U, int64_t N, bool D>
inline constexpr bool reads_all_levels<FeatureHead<S, false, R, U, N, D>> = false;

template <class Model>
void expect_a_whole_model() {
  auto model = small<Model>();
  const auto out = model->forward(sample_images());
  EXPECT_EQ(out.maps.logits.sizes(), (std::vector<int64_t>{3, 1, 64, 96}));
  ASSERT_EQ(out.routing.size(), 4u);
  at::Tensor loss = model->head->loss(out.maps, sample_masks());
  ASSERT_EQ(loss.sizes(), (std::vector<int64_t>{3}));
  loss = loss.sum();
  if constexpr (requires { out.auxiliary_loss; }) loss = loss + out.auxiliary_loss;
  loss.backward();
  for (const auto& item : model->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().template item<bool>()) << item.key();
    if (item.key().find(".experts.") != std::string::npos) continue;  // may be idle
    const bool finer = item.key().starts_with("mixtures.") && !item.key().starts_with("mixtures.3.");
    if (finer && !reads_all_levels<typename Model::head_type>) continue;
    EXPECT_GT(item.value().grad().abs().max().template item<float>(), 0.f) << item.key();
  }
}

static_assert(feature_head<FeatureHead<>>);
static_assert(!feature_head<torch::nn::Module>, "no options, no forward, no loss");

TEST(FeatureLevel, TrainsWithStackedExperts) { expect_a_whole_model<Features>(); }
TEST(FeatureLevel, TrainsWithDistinctExperts) {
  expect_a_whole_model<FeatureLevel<
      backbone::PvtV2B0, Mixture<router::GlobalPool, Six, select::TopK<2>, balance::Switch, dispatch::Batched>>>();
}
TEST(FeatureLevel, RoutesPositionsThroughPositionExperts) {
  using ByPosition = Mixture<router::Position, Replicated<expert::Mlp<>, 4>, select::TopK<2>, balance::EmaBias,
                             dispatch::Grouped>;
  using Model = FeatureLevel<backbone::PvtV2B0, ByPosition>;
  expect_a_whole_model<Model>();
  const auto out = small<Model>()->forward(sample_images());
  EXPECT_EQ(out.routing[0].rows(), 3 * 16 * 24);
}
TEST(FeatureLevel, RoutesPositionsThroughSpatialExpertsUnderMasked) {
  expect_a_whole_model<FeatureLevel<
      backbone::PvtV2B0, Mixture<router::Position, Six, select::TopK<2>, balance::EmaBias, dispatch::Masked>>>();
}

template <class Head>
std::set<std::string> parts_of() {
  std::set<std::string> out;
  for (const auto& item : Head({.width = 8}).named_parameters()) out.insert(item.key().substr(0, item.key().find('.')));
  return out;
}

// Search, Decoder, Reverse, Uncertainty, Refinements, DeepSupervision.
using WithoutSearch = FeatureHead<false>;
using WithoutDecoder = FeatureHead<true, false>;
using WithoutReverse = FeatureHead<true, true, false>;
using WithoutUncertainty = FeatureHead<true, true, true, false>;
using WithoutRefinements = FeatureHead<true, true, true, true, 0>;
using WithoutDeepSupervision = FeatureHead<true, true, true, true, 2, false>;
using Bare = FeatureHead<false, false, false, false, 0, false>;

TEST(FeatureLevel, EveryPartOfTheHeadCanBeLeftOut) {
  [&]<class... Head>(std::type_identity<Head>...) {
    (expect_a_whole_model<FeatureLevel<backbone::PvtV2B0, Plain, Head>>(), ...);
  }(std::type_identity<WithoutSearch>(), std::type_identity<WithoutDecoder>(), std::type_identity<WithoutReverse>(),
    std::type_identity<WithoutUncertainty>(), std::type_identity<WithoutRefinements>(),
    std::type_identity<WithoutDeepSupervision>(), std::type_identity<Bare>());
}

TEST(FeatureLevel, APartThatIsLeftOutHasNoParameters) {
  const std::set<std::string> whole{"identify", "search",   "search_map", "lateral1",  "lateral2",    "lateral3",
                                    "join1a",   "join1b",   "join2a",     "join2b",    "join3a",      "join3b",
                                    "map1",     "map2",     "map3",       "reverse",   "doubt",       "doubt_map",
                                    "refine0a", "refine0b", "refine0_map", "refine1a", "refine1b",    "refine1_map"};
  const auto but = [&](const std::set<std::string>& absent) {
    std::set<std::string> out;
    std::set_difference(whole.begin(), whole.end(), absent.begin(), absent.end(), std::inserter(out, out.end()));
    return out;
  };
  EXPECT_EQ(parts_of<FeatureHead<>>(), whole);
  auto without_search = but({"identify", "search", "search_map"});
  without_search.insert("lateral4");
  EXPECT_EQ(parts_of<WithoutSearch>(), without_search);
  EXPECT_EQ(parts_of<WithoutDecoder>(), but({"lateral1", "lateral2", "lateral3", "join1a", "join1b", "join2a", "join2b",
                                            "join3a", "join3b", "map2", "map3"}));
  EXPECT_EQ(parts_of<WithoutReverse>(), but({"reverse"}));
  EXPECT_EQ(parts_of<WithoutUncertainty>(), but({"doubt", "doubt_map"}));
  EXPECT_EQ(parts_of<WithoutRefinements>(), but({"refine0a", "refine0b", "refine0_map", "refine1a", "refine1b",
                                                 "refine1_map"}));
  EXPECT_EQ(parts_of<WithoutDeepSupervision>(), but({"map2", "map3"}));
  EXPECT_EQ(parts_of<Bare>(), (std::set<std::string>{"lateral4", "map1"}));
}

TEST(FeatureLevel, OnlyDeepSupervisionLooksAtSideMaps) {
  const auto sides = []<class Head>(std::type_identity<Head>) {
    return small<FeatureLevel<backbone::PvtV2B0, Plain, Head>>()->forward(sample_images()).maps.side.size();
  };
  EXPECT_EQ(sides(std::type_identity<FeatureHead<>>()), 6u);
  EXPECT_EQ(sides(std::type_identity<WithoutSearch>()), 5u);
  EXPECT_EQ(sides(std::type_identity<WithoutDecoder>()), 4u);
  EXPECT_EQ(sides(std::type_identity<WithoutDeepSupervision>()), 0u);
  EXPECT_EQ(sides(std::type_identity<Bare>()), 0u);
  // The same answer from the same weights: the maps left out are not on its way.
  const auto whole = small<Features>();
  const auto without = small<FeatureLevel<backbone::PvtV2B0, Plain, WithoutDeepSupervision>>();
  const at::NoGradGuard no_grad;
  const auto source = whole->named_parameters();
  for (const auto& item : without->named_parameters()) item.value().copy_(source[item.key()]);
  EXPECT_TRUE(at::equal((*whole)(sample_images()), (*without)(sample_images())));
}

TEST(FeatureLevel, TheHeadGivesItsMapsInTheirOrder) {
  const auto out = small<Features>()->forward(sample_images());
  const std::vector<std::vector<int64_t>> sizes{{2, 3}, {4, 6}, {8, 12}, {16, 24}, {16, 24}, {16, 24}};
  ASSERT_EQ(out.maps.side.size(), sizes.size());  // search, three levels, reverse attention, one refinement
  for (std::size_t i = 0; i < sizes.size(); ++i)
    EXPECT_EQ(out.maps.side[i].sizes(), (std::vector<int64_t>{3, 1, sizes[i][0], sizes[i][1]})) << i;
  EXPECT_GT(out.maps.deviation.min().item<float>(), 0.f);
  EXPECT_EQ(out.maps.doubted.sizes(), out.maps.deviation.sizes());
}

TEST(FeatureLevel, TheHeadRefusesLevelsOfAnotherImage) {
  FeatureHead<> head({.channels = {4, 8, 8, 8}, .width = 8});
  const Pyramid levels{at::zeros({1, 4, 16, 16}), at::zeros({1, 8, 8, 8}), at::zeros({1, 8, 4, 4}), at::zeros({1, 8, 2, 2})};
  EXPECT_EQ(head.forward(levels, 64, 64).logits.sizes(), (std::vector<int64_t>{1, 1, 64, 64}));
  EXPECT_NE(test::error_of([&] { head.forward(levels, 64, 96); }).find("must be 16 x 24"), std::string::npos);
}

TEST(FeatureLevel, ImagesAreIndependentInEvaluationAndRecomputationChangesNothing) {
  auto model = small<Features>();
  model->eval();
  const at::Tensor images = sample_images();
  {
    const at::NoGradGuard no_grad;
    const at::Tensor all = (*model)(images);
    for (int64_t i = 0; i < 3; ++i)
      EXPECT_TRUE(at::allclose((*model)(images.slice(0, i, i + 1)), all.slice(0, i, i + 1), 1e-3, 1e-4)) << i;
  }
  std::vector<at::Tensor> first;
  for (const bool recompute : {false, true}) {
    at::manual_seed(3);
    Features::Options options;
    options.head.width = 16;
    options.recompute = recompute;
    Features one(options);
    one.head->loss(one.forward(images).maps, sample_masks()).sum().backward();
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : state_dict(one)) all.push_back(tensor.clone());
    for (const at::Tensor& parameter : one.parameters()) all.push_back(parameter.grad());
    if (first.empty()) first = all;
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(at::allclose(all[i], first[i], 1e-5, 1e-6)) << i;
  }
}

TEST(FeatureLevel, APolicySwapReplacesTheSlotOfEveryLevel) {
  using Swapped = swap_t<Features, balance::Switch>;
  static_assert(std::is_same_v<Swapped::mixture_type::balance_type, balance::Switch>);
  static_assert(std::is_same_v<Swapped::head_type, Features::head_type>);
  static_assert(std::is_same_v<swap_t<Features, backbone::ConvNextTiny>::backbone_type, backbone::ConvNextTiny>);
  const auto out = small<Swapped>()->forward(sample_images());
  EXPECT_GT(out.auxiliary_loss.item<float>(), 0.f);
}

TEST(FeatureLevel, CountsOfAllLevelsAreCommittedTogether) {
  auto model = small<Features>();
  model->forward(sample_images());
  const auto policies = balance::counting(*model);
  ASSERT_EQ(policies.size(), 4u);
  for (const auto* policy : policies) EXPECT_EQ(policy->counts.sum().item<int64_t>(), 3 * 2);
  balance::commit(*model);
  for (const auto* policy : policies) EXPECT_EQ(policy->counts.sum().item<int64_t>(), 0);
}

TEST(FeatureLevelTask, DescribesUsageByItsSmallestAndLargestShare) {
  EXPECT_STREQ(train::describe_usage({0.25, 0.25, 0.25, 0.25}), "ideal");
  EXPECT_STREQ(train::describe_usage({0.21, 0.29, 0.25, 0.25}), "ideal");
  EXPECT_STREQ(train::describe_usage({0.15, 0.35, 0.25, 0.25}), "good");
  EXPECT_STREQ(train::describe_usage({0.05, 0.45, 0.25, 0.25}), "uneven");
  EXPECT_STREQ(train::describe_usage({0.01, 0.49, 0.25, 0.25}), "collapsed");
}

TEST(FeatureLevelTask, ALineSaysHowEachLevelUsesItsExperts) {
  train::FeatureScore score{.iou = 0.5};
  score.levels.resize(4);
  for (auto& level : score.levels) level.usage = {0.05, 0.45, 0.25, 0.25};
  EXPECT_EQ(score.summary(), "validation IoU 0.500");
  EXPECT_EQ(score.usage_summary(), "experts uneven 0.05-0.45, uneven 0.05-0.45, uneven 0.05-0.45, uneven 0.05-0.45");
  EXPECT_LE(score.usage_summary().size(), 79u) << "a terminal's line";
  score.trained_usage = {{0.25, 0.25, 0.25, 0.25}, {0.15, 0.35, 0.25, 0.25}, {0.01, 0.49, 0.25, 0.25}, {0, 0, 0.5, 0.5}};
  EXPECT_EQ(score.usage_summary(), "experts ideal 0.25-0.25, good 0.15-0.35, collapsed 0.01-0.49, collapsed 0.00-0.50");
}

TEST(FeatureLevelTask, ItsLossTrainsWhatTheStageTrainsAndNothingElse) {
  using Task = train::FeatureLevelTask<Features>;
  static_assert(train::task<Task>);
  auto model = small<Features>();
  train::Stage stage{.number = 1, .name = "frozen backbone", .trains = {"mixtures", "head"}};
  train::enter(stage, *model);
  EXPECT_FALSE(model->backbone->is_training());
  EXPECT_TRUE(model->mixtures[0]->balance->is_training());
  Task task(stage, at::kCPU, 1);
  task.loss(0, *model, sample_images(), sample_masks(), task.draw(3), 0.0).backward();
  for (const auto& item : model->named_parameters())
    EXPECT_EQ(item.value().grad().defined(), !item.key().starts_with("backbone.")) << item.key();
}

TEST(UncertainLoss, DoubtCostsLessWhereTheMapIsWrongAndMoreWhereItIsRight) {
  const at::Tensor target = at::ones({2, 1, 2, 2});
  const at::Tensor logits = at::tensor({-3.f, 3.f}).view({2, 1, 1, 1}).expand({2, 1, 2, 2});
  const at::Tensor sure = loss::uncertain(logits, at::zeros({2, 1, 2, 2}), target);
  const at::Tensor doubting = loss::uncertain(logits, at::full({2, 1, 2, 2}, 4.f), target);
  EXPECT_TRUE(at::allclose(sure, loss::bce(logits, target)));
  EXPECT_LT(doubting[0].item<float>(), sure[0].item<float>());
  EXPECT_GT(doubting[1].item<float>(), sure[1].item<float>());
  // The formula against the mean over a million normal logits: the approximation is within 0.02 in probability.
  at::manual_seed(1);
  const double exact = at::sigmoid(1.0 + 2.0 * at::randn({1000000}, at::kDouble)).mean().item<double>();
  const double ours =
      std::exp(-loss::uncertain(at::ones({1, 1, 1, 1}, at::kDouble), at::full({1, 1, 1, 1}, 2.0, at::kDouble),
                                at::ones({1, 1, 1, 1}, at::kDouble))
                    .item<double>());
  EXPECT_NEAR(ours, exact, 0.02);
}

}  // namespace
