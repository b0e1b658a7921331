// Backbones, the router that reads their pyramids, and the counter of multiply-adds. The comparison of every variant
// with timm is tests/reference/backbone_parity.py.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>

#include <torch/torch.h>

#include "moecod/backbone/any.hpp"
#include "moecod/backbone/concept.hpp"
#include "moecod/backbone/convnext.hpp"
#include "moecod/backbone/drop_path.hpp"
#include "moecod/backbone/keys.hpp"
#include "moecod/backbone/pvt_v2.hpp"
#include "moecod/backbone/swin.hpp"
#include "moecod/core/state.hpp"
#include "moecod/model/mac_counter.hpp"
#include "moecod/model/summary.hpp"
#include "moecod/moe/router/pyramid.hpp"

namespace {

using namespace moecod;

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

std::set<std::string> names_of(const torch::nn::Module& module) {
  std::set<std::string> out;
  for (const auto& [name, tensor] : state_dict(module)) out.insert(name);
  return out;
}

void expect_gradients_everywhere(torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key() << " has no gradient";
    EXPECT_TRUE(at::isfinite(item.value().grad()).all().item<bool>()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<float>(), 0.f) << item.key() << " has a gradient of zeros";
  }
}

TEST(Backbones, LevelsHaveTheirChannelsAndStrides) {
  torch::manual_seed(0);
  for (const char* name : {"pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2_li", "edgenext_small", "swin_tiny_patch4_window7_224",
                           "convnext_tiny"}) {
    const auto model = backbone::Any::make({.name = name});
    const at::NoGradGuard no_grad;
    const Pyramid levels = model->forward(at::randn({2, 3, 64, 96}));
    ASSERT_EQ(levels.size(), 4u);
    for (std::size_t i = 0; i < 4; ++i)
      EXPECT_EQ(levels[i].sizes().vec(),
                (std::vector<int64_t>{2, model->dims()[i], 64 / model->strides()[i], 96 / model->strides()[i]}))
          << name;
  }
}

TEST(Backbones, VariantsHaveTheParametersOfTimm) {
  // timm 1.0.29, without the classifier.
  const std::map<std::string, int64_t> counts{{"pvt_v2_b0", 3409760},  {"pvt_v2_b1", 13496000},
                                              {"pvt_v2_b2", 24849856}, {"pvt_v2_b2_li", 22040512},
                                              {"edgenext_small", 5281224}, {"convnext_tiny", 27818592},
                                              {"swin_tiny_patch4_window7_224", 27517818}};
  for (const auto& [name, count] : counts)
    EXPECT_EQ(parameter_count(*backbone::Any::make({.name = name})), count) << name;
}

TEST(PvtV2, InitialValuesAreTimms) {
  torch::manual_seed(0);
  const backbone::PvtV2B1 model;
  const auto p = model.named_parameters();
  EXPECT_NEAR(p["stages.3.blocks.0.mlp.fc1.weight"].std().item<double>(), 0.02, 1e-4);
  EXPECT_NEAR(p["stages.2.downsample.proj.weight"].std().item<double>(), std::sqrt(2.0 / (9 * 320)), 3e-4);
  EXPECT_NEAR(p["stages.3.blocks.1.mlp.dwconv.weight"].std().item<double>(), std::sqrt(2.0 / 9), 1e-2);
  for (const auto& item : p) {
    if (item.key().ends_with("bias")) {
      EXPECT_EQ(item.value().abs().max().item<float>(), 0.f) << item.key();
    }
  }
}

TEST(Backbones, GradientsReachEveryParameterWithAndWithoutRecomputation) {
  for (const char* name : {"pvt_v2_b0", "pvt_v2_b2_li", "edgenext_small", "swin_tiny_patch4_window7_224",
                           "convnext_tiny"}) {
    torch::manual_seed(1);
    const auto model = backbone::Any::make({.name = name, .drop_path = 0.2});
    const at::Tensor images = at::randn({6, 3, 64, 64});  // no branch is dropped for all of them
    const auto gradients = [&](bool recompute) {
      torch::manual_seed(7);  // the same branches dropped, also when blocks are run again
      model->zero_grad();
      model->recompute = recompute;
      at::Tensor loss = at::zeros({});
      for (const at::Tensor& level : model->forward(images)) loss = loss + level.pow(3).sum();
      loss.backward();
      expect_gradients_everywhere(*model);
      std::vector<at::Tensor> out;
      for (const at::Tensor& parameter : model->parameters()) out.push_back(parameter.grad().clone());
      return out;
    };
    const auto kept = gradients(false), computed = gradients(true);
    // Swin's not bitwise: LibTorch takes another attention kernel where a bias needs no gradient.
    const bool swin = std::string(name).starts_with("swin");
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const float difference = (kept[i] - computed[i]).abs().max().item<float>();
      EXPECT_LE(difference, swin ? 1e-5f * kept[i].abs().max().item<float>() : 0.f) << name << " " << i;
    }
  }
}

TEST(Swin, ShiftedWindowsSeeOnlyWhatLayTogether) {
  // A change of one patch in the first row reaches the last rows through the roll alone, which the mask must undo: a
  // single shifted block on 14 x 14 positions.
  torch::manual_seed(2);
  backbone::swin::Block block(32, 2, /*shifted=*/true, 0.0);
  block.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 14, 14, 32});
  at::Tensor changed = x.clone();
  changed[0][0][5] = at::randn({32});  // a constant would vanish in the norm
  const at::Tensor moved = (block.forward(changed) - block.forward(x)).abs().amax({0, 3});
  // Row 0 lies in the windows' last part of three rows before the shift: rows 0 to 2, columns 3 to 9.
  EXPECT_GT(moved.slice(0, 0, 3).slice(1, 3, 10).min().item<float>(), 1e-6f);
  EXPECT_LT(moved.slice(0, 3).max().item<float>(), 1e-9f);
  EXPECT_LT(moved.slice(1, 0, 3).max().item<float>(), 1e-9f);
  EXPECT_LT(moved.slice(1, 10).max().item<float>(), 1e-9f);
}

TEST(Backbones, InitialValuesOfTheNextFamilyAreTimms) {
  torch::manual_seed(0);
  const backbone::ConvNextTiny conv;
  const backbone::SwinTiny swin;
  const auto p = conv.named_parameters(), q = swin.named_parameters();
  EXPECT_NEAR(p["stages.3.blocks.0.mlp.fc1.weight"].std().item<double>(), 0.02, 1e-4);
  EXPECT_EQ(p["stages.0.blocks.0.gamma"].max().item<float>(), 1e-6f);
  EXPECT_EQ(p["stages.0.blocks.0.conv_dw.bias"].abs().max().item<float>(), 0.f);
  EXPECT_NEAR(q["layers.3.blocks.0.attn.qkv.weight"].std().item<double>(), 0.02, 1e-4);
  EXPECT_NEAR(q["layers.3.blocks.0.attn.relative_position_bias_table"].std().item<double>(), 0.02, 2e-3);
}

TEST(Backbones, ADropPathRateOutsideItsRangeIsRefused) {
  for (const char* name : {"edgenext_small", "swin_tiny_patch4_window7_224", "convnext_tiny"})
    EXPECT_NE(message_of([&] { backbone::Any::make({.name = name, .drop_path = 1.0}); }).find("drop_path"),
              std::string::npos);
}

TEST(PvtV2, WrongImagesAreRefusedByTheirSizes) {
  backbone::PvtV2B0 model;
  EXPECT_NE(message_of([&] { model.forward(at::zeros({1, 3, 64, 100})); }).find("multiples of 32, got 64 x 100"),
            std::string::npos);
  EXPECT_NE(message_of([&] { model.forward(at::zeros({1, 3, 0, 32})); }).find("got 0 x 32"), std::string::npos);
  EXPECT_NE(message_of([&] { model.forward(at::zeros({1, 4, 64, 64})); }).find("got [1, 4, 64, 64]"),
            std::string::npos);
  EXPECT_NE(message_of([] { backbone::PvtV2B0({.drop_path = 1.0}); }).find("drop_path must be in [0, 1)"),
            std::string::npos);
}

TEST(DropPath, KeepsWholeImagesAndTheirMean) {
  torch::manual_seed(2);
  const at::Tensor x = at::ones({20000, 3});
  const at::Tensor y = backbone::drop_path(x, 0.25, true);
  EXPECT_TRUE(at::equal(y.amin(1), y.amax(1)));
  EXPECT_TRUE(at::logical_or(y.eq(0), y.sub(1 / 0.75).abs().lt(1e-6)).all().item<bool>());
  EXPECT_NEAR(y.mean().item<double>(), 1.0, 0.02);
  EXPECT_TRUE(backbone::drop_path(x, 0.25, false).is_same(x));
  EXPECT_EQ(backbone::drop_path_rate(0.3, 0, 4), 0.0);
  EXPECT_NEAR(backbone::drop_path_rate(0.3, 2, 4), 0.2, 1e-12);
  EXPECT_EQ(backbone::drop_path_rate(0.3, 3, 4), 0.3);
}

TEST(DropPath, ActsInTrainingOnly) {
  backbone::PvtV2B0 model({.drop_path = 0.5});
  const at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({4, 3, 32, 32});
  EXPECT_FALSE(at::equal(model.forward(images)[3], model.forward(images)[3]));
  model.eval();
  EXPECT_TRUE(at::equal(model.forward(images)[3], model.forward(images)[3]));
}

TEST(Any, HasTheNamesOfTheTypeItStandsFor) {
  static_assert(backbone::policy<backbone::Any> && backbone::policy<backbone::PvtV2B2>);
  const auto chosen = backbone::create<backbone::Any>({.name = "pvt_v2_b0"});
  EXPECT_EQ(names_of(*chosen), names_of(*backbone::create<backbone::PvtV2B0>()));
  const std::string message = message_of([] { backbone::Any::make({.name = "pvt_v9"}); });
  EXPECT_NE(message.find("no 'pvt_v9'"), std::string::npos);
  for (const std::string& name : backbone::Any::names()) EXPECT_NE(message.find(name), std::string::npos);
}

TEST(Keys, NamesOfPublishedFilesBecomeTimms) {
  const std::map<std::string, std::string> same{
      {"patch_embed.proj.weight", "patch_embed.proj.weight"},
      {"stages.1.blocks.0.norm1.bias", "stages.1.blocks.0.norm1.bias"},
      {"stages_2.downsample.norm.bias", "stages.2.downsample.norm.bias"},
      {"stem_0.weight", "stem.0.weight"},
      {"layers_3.blocks.1.attn.qkv.bias", "layers.3.blocks.1.attn.qkv.bias"},
      {"patch_embed1.norm.bias", "patch_embed.norm.bias"},
      {"patch_embed4.proj.bias", "stages.3.downsample.proj.bias"},
      {"block3.12.mlp.dwconv.dwconv.weight", "stages.2.blocks.12.mlp.dwconv.weight"},
      {"norm2.weight", "stages.1.norm.weight"},
      {"downsample_layers.0.1.bias", "stem.1.bias"},
      {"downsample_layers.2.0.weight", "stages.2.downsample.0.weight"},
      {"stages.2.8.dwconv.weight", "stages.2.blocks.8.conv_dw.weight"},
      {"stages.3.0.pwconv2.bias", "stages.3.blocks.0.mlp.fc2.bias"},
      {"stages.1.blocks.2.convs.0.weight", "stages.1.blocks.2.convs.0.weight"},
  };
  for (const auto& [from, to] : same) EXPECT_EQ(backbone::timm_key(from), to);
  for (const char* ignored : {"head.weight", "norm.bias", "layers.0.blocks.1.attn_mask",
                              "layers.0.blocks.0.attn.relative_position_index"})
    EXPECT_EQ(backbone::timm_key(ignored), std::nullopt) << ignored;
}

TEST(Keys, OldFilesOfSwinAreKnownByTheirFirstDownsampling) {
  const StateDict old{{"layers.0.downsample.norm.bias", {}}, {"layers.2.downsample.reduction.weight", {}}};
  const auto rename = backbone::timm_keys(old);
  EXPECT_EQ(rename("layers.0.downsample.norm.bias"), "layers.1.downsample.norm.bias");
  EXPECT_EQ(rename("layers.2.downsample.reduction.weight"), "layers.3.downsample.reduction.weight");
  EXPECT_EQ(rename("layers.2.blocks.0.norm1.bias"), "layers.2.blocks.0.norm1.bias");
  const auto same = backbone::timm_keys({{"layers.1.downsample.norm.bias", {}}});
  EXPECT_EQ(same("layers.1.downsample.norm.bias"), "layers.1.downsample.norm.bias");
}

TEST(Swin, OneModelTakesImagesOfChangingSizes) {
  torch::manual_seed(5);
  backbone::SwinTiny model;
  model.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor small = at::randn({1, 3, 64, 64}), large = at::randn({1, 3, 256, 320});
  const Pyramid first = model.forward(small);
  const Pyramid other = model.forward(large);
  EXPECT_EQ(other[3].sizes(), (std::vector<int64_t>{1, 768, 8, 10}));
  const Pyramid again = model.forward(small);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(first[i], again[i])) << i;
}

TEST(Backbones, AreFloat64WhereTheyAreAskedToBe) {
  for (const char* name : {"edgenext_small", "swin_tiny_patch4_window7_224", "convnext_tiny"}) {
    torch::manual_seed(6);
    const auto model = backbone::Any::make({.name = name, .drop_path = 0.2});
    const at::NoGradGuard no_grad;
    const at::Tensor images = at::randn({2, 3, 64, 64});
    model->eval();
    const Pyramid single = model->forward(images);
    model->to(at::kDouble);
    const Pyramid exact = model->forward(images.to(at::kDouble));
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_EQ(exact[i].scalar_type(), at::kDouble);
      EXPECT_LT((single[i] - exact[i]).abs().max().item<double>(), 1e-3 * exact[i].abs().max().item<double>()) << name;
    }
    model->train();  // with drop path, another answer every time
    EXPECT_FALSE(at::equal(model->forward(images.to(at::kDouble))[3], model->forward(images.to(at::kDouble))[3])) << name;
  }
}

// The router.

const std::vector<int64_t> b2_channels{64, 128, 320, 512};

Pyramid random_pyramid(int64_t batch, const std::vector<int64_t>& channels, int64_t finest = 32) {
  Pyramid out;
  for (std::size_t i = 0; i < channels.size(); ++i)
    out.push_back(at::randn({batch, channels[i], finest >> i, finest >> i}));
  return out;
}

TEST(PyramidRouter, HasTheSizeThatItsWidthSays) {
  const router::Pyramid<> full({.experts = 4, .channels = b2_channels});
  EXPECT_GT(parameter_count(full), 7'500'000);
  EXPECT_LT(parameter_count(full), 8'500'000);
  const router::Pyramid<> small({.experts = 4, .channels = b2_channels, .width = 16});
  EXPECT_LT(parameter_count(small), 60'000);
  EXPECT_NE(message_of([] { router::Pyramid<>({.channels = b2_channels, .width = 18}); }).find("multiple of 4, got 18"),
            std::string::npos);
}

template <class Router>
void expect_router_works(const std::set<std::string>& branches) {
  torch::manual_seed(3);
  Router router({.experts = 3, .channels = {8, 16, 24, 32}, .width = 8});
  std::set<std::string> found;
  for (const auto& child : router.named_children())
    if (std::set<std::string>{"texture", "edges", "context", "frequency"}.count(child.key())) found.insert(child.key());
  EXPECT_EQ(found, branches);

  const Pyramid pyramid = random_pyramid(4, {8, 16, 24, 32});
  const at::Tensor logits = router.forward(pyramid);
  EXPECT_EQ(logits.sizes().vec(), (std::vector<int64_t>{4, 3}));
  logits.pow(2).sum().backward();
  expect_gradients_everywhere(router);

  router.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor together = router.forward(Scene{.image = at::zeros({4, 3, 8, 8}), .pyramid = pyramid});
  Pyramid second;
  for (const at::Tensor& level : pyramid) second.push_back(level.slice(0, 1, 2));
  EXPECT_TRUE(at::allclose(router.forward(second), together.slice(0, 1, 2), 1e-4, 1e-5)) << "looks at the batch";
}

TEST(PyramidRouter, EveryBranchWorksAloneAndTogether) {
  expect_router_works<router::Pyramid<>>({"texture", "edges", "context", "frequency"});
  expect_router_works<router::Pyramid<true, false, false, false>>({"texture"});
  expect_router_works<router::Pyramid<false, true, false, false>>({"edges"});
  expect_router_works<router::Pyramid<false, false, true, false>>({"context"});
  expect_router_works<router::Pyramid<false, false, false, true>>({"frequency"});
}

TEST(PyramidRouter, EdgeOnlyHasNoLayerForTheTopLevel) {
  const router::Pyramid<false, true, false, false> router({.channels = b2_channels, .width = 8});
  EXPECT_FALSE(router.named_children().contains("stem"));
}

TEST(PyramidRouter, RefusesOtherPyramids) {
  router::Pyramid<> router({.channels = {8, 16}, .width = 8});
  EXPECT_NE(message_of([&] { router.forward(random_pyramid(1, {8, 16, 32})); }).find("expected 2 levels, got 3"),
            std::string::npos);
  EXPECT_NE(message_of([&] { router.forward(random_pyramid(1, {8, 12})); }).find("level 2 must be [B, 16, H, W]"),
            std::string::npos);
}

TEST(PyramidRouter, AFloat64RouterGivesFloat64Logits) {
  router::Pyramid<> router({.channels = {8, 16}, .width = 8});
  router.eval();
  Pyramid pyramid = random_pyramid(2, {8, 16});
  const at::Tensor single = router.forward(pyramid);
  router.to(at::kDouble);
  for (at::Tensor& level : pyramid) level = level.to(at::kDouble);
  const at::Tensor exact = router.forward(pyramid);
  EXPECT_EQ(exact.scalar_type(), at::kDouble);
  EXPECT_TRUE(at::allclose(exact, single.to(at::kDouble), 1e-4, 1e-5));
}

TEST(PyramidRouter, LogitsAreFloatUnderAutocast) {
  torch::manual_seed(4);
  router::Pyramid<> router({.channels = {8, 16}, .width = 8});
  router.eval();
  const at::NoGradGuard no_grad;
  const Pyramid pyramid = random_pyramid(2, {8, 16});
  const at::Tensor exact = router.forward(pyramid), rms = router::band_rms(pyramid[0], 0.25);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const at::Tensor cast = router.forward(pyramid), cast_rms = router::band_rms(pyramid[0], 0.25);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(cast.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(cast, exact, 0.05, 0.05));
  EXPECT_FALSE(at::equal(cast, cast.to(at::kBFloat16).to(at::kFloat))) << "the last layer ran in bfloat16";
  EXPECT_TRUE(at::equal(rms, cast_rms));
}

TEST(BandRms, SplitsTheMeanSquareAndSeesBothSignsOfARow) {
  torch::manual_seed(5);
  for (const auto& [height, width] : std::vector<std::pair<int64_t, int64_t>>{{8, 8}, {7, 9}, {6, 5}, {1, 1}, {5, 2}}) {
    const at::Tensor x = at::randn({2, 3, height, width});
    const at::Tensor sum = router::band_rms(x, 0.25).square().sum(1);
    EXPECT_TRUE(at::allclose(sum, x.square().mean({2, 3}), 1e-4, 1e-6)) << height << " x " << width;
  }
  // A slow wave along the falling and one along the rising diagonal: the latter has a negative row frequency.
  const at::Tensor row = at::arange(16).view({16, 1}), column = at::arange(16).view({1, 16});
  for (const int sign : {1, -1}) {
    const at::Tensor slow = at::cos((row * sign + column) * (2 * M_PI * 2 / 16)).view({1, 1, 16, 16});
    const at::Tensor fast = at::cos((row * sign * 3 + column * 3) * (2 * M_PI * 2 / 16)).view({1, 1, 16, 16});
    const auto low_high = [](const at::Tensor& x) { return router::band_rms(x, 0.25).view({2}); };
    EXPECT_NEAR(low_high(slow)[0].item<float>(), std::sqrt(0.5), 1e-5);
    EXPECT_NEAR(low_high(slow)[1].item<float>(), 0, 1e-5);
    EXPECT_NEAR(low_high(fast)[0].item<float>(), 0, 1e-5);
    EXPECT_NEAR(low_high(fast)[1].item<float>(), std::sqrt(0.5), 1e-5);
  }
}

// The counter.

template <class F>
int64_t macs_of(F&& f) {
  const at::NoGradGuard no_grad;
  const MacCounter counter;
  f();
  return counter.total();
}

TEST(MacCounter, CountsEachOperationByItsFormula) {
  const at::Tensor map = at::randn({2, 6, 10, 12});
  EXPECT_EQ(macs_of([&] { at::conv2d(map, at::randn({8, 3, 3, 5}), {}, {2, 2}, {1, 2}, {1, 1}, 2); }),
            2 * 8 * 5 * 6 * (3 * 3 * 5));
  EXPECT_EQ(macs_of([&] { at::conv_transpose2d(map, at::randn({6, 4, 2, 2}), {}, {2, 2}); }),
            2 * 6 * 10 * 12 * (4 * 2 * 2));
  const at::Tensor x = at::randn({5, 7, 11});
  EXPECT_EQ(macs_of([&] { at::linear(x, at::randn({13, 11}), at::randn({13})); }), 5 * 7 * 13 * 11);
  EXPECT_EQ(macs_of([&] { at::matmul(x, at::randn({5, 11, 3})); }), 5 * 7 * 3 * 11);
  EXPECT_EQ(macs_of([&] { at::addmm(at::randn({3}), at::randn({4, 5}), at::randn({5, 3})); }), 4 * 3 * 5);
  EXPECT_EQ(macs_of([&] { at::einsum("bij,kj->bik", {x, at::randn({3, 11})}); }), 5 * 7 * 3 * 11);
  const at::Tensor q = at::randn({2, 3, 8, 16}), k = at::randn({2, 3, 5, 16}), v = at::randn({2, 3, 5, 4});
  EXPECT_EQ(macs_of([&] { at::scaled_dot_product_attention(q, k, v); }), 2 * 3 * 8 * 5 * (16 + 4));
  EXPECT_EQ(macs_of([&] { at::relu(map).mean(); }), 0);
}

TEST(MacCounter, NestsAndEnds) {
  const at::Tensor a = at::randn({3, 4}), b = at::randn({4, 5});
  const at::NoGradGuard no_grad;
  int64_t inner = 0;
  MacCounter outer;
  at::mm(a, b);
  {
    const MacCounter counter;
    at::mm(a, b);
    inner = counter.total();
  }
  EXPECT_EQ(inner, 60);
  EXPECT_EQ(outer.total(), 120);
  EXPECT_EQ(macs_of([] {}), 0);
}

TEST(MacCounter, ABackboneCostsWhatItsPaperSays) {
  // PVTv2-B0: 0.6 G multiply-adds at 224 x 224 (arXiv 2106.13797, table 1), to the digit given there.
  backbone::PvtV2B0 model;
  model.eval();
  const int64_t macs = macs_of([&] { model.forward(at::zeros({1, 3, 224, 224})); });
  EXPECT_NEAR(static_cast<double>(macs) * 1e-9, 0.6, 0.05);
}

}  // namespace
