// The four decoders: shapes, sizes, gradients, independence of rows, and ZoomNet's other scales.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <array>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/recompute.hpp"
#include "moecod/core/tree.hpp"
#include "moecod/expert/pranet.hpp"
#include "moecod/expert/sinet.hpp"
#include "moecod/expert/ujsc.hpp"
#include "moecod/expert/zoomnet.hpp"

namespace {

using namespace moecod;
using at::Tensor;

constexpr std::array<int64_t, 4> kChannels{8, 16, 24, 32};

/// A backbone of four strided convolutions that remembers the sizes of the pictures it was shown.
struct TinyBackbone {
  std::vector<Tensor> weights;
  std::vector<std::vector<int64_t>> seen;
  Encoder encode = [this](const Tensor& image) {
    seen.push_back(image.sizes().vec());
    return pyramid(image);
  };

  TinyBackbone() {
    for (std::size_t i = 0; i < 4; ++i) {
      const int64_t k = i == 0 ? 4 : 2;
      weights.push_back((at::randn({kChannels[i], i == 0 ? 3 : kChannels[i - 1], k, k}) * 0.3).set_requires_grad(true));
    }
  }
  Pyramid pyramid(const Tensor& image) const {
    Pyramid out;
    for (const Tensor& w : weights)
      out.push_back(at::conv2d(out.empty() ? image : out.back(), w, {}, {w.size(2), w.size(2)}));
    return out;
  }
  Scene scene(int64_t n, int64_t height, int64_t width) const {
    Scene scene;
    scene.image = at::randn({n, 3, height, width});
    scene.pyramid = pyramid(scene.image);
    scene.encode = &encode;
    return scene;
  }
};

template <class Expert>
typename Expert::Options narrow(int64_t width) {
  typename Expert::Options options;
  options.channels = {kChannels.begin(), kChannels.end()};
  options.width = width;
  return options;
}

template <class Module>
int64_t parameters(const Module& module) {
  int64_t sum = 0;
  for (const Tensor& p : module.parameters()) sum += p.numel();
  return sum;
}

template <class Expert>
int64_t parameters_at(int64_t width) {
  typename Expert::Options options;
  options.width = width;
  return parameters(Expert(options));
}

Scene permuted(const Scene& scene, const Tensor& order) {
  return tree::map([&](const Tensor& x) { return x.index_select(0, order); }, scene);
}

/// Training makes even a tiny decoder's running statistics differ from their initial values.
template <class Expert>
void train_once(Expert& expert, const Scene& scene) {
  torch::NoGradGuard no_grad;
  expert.train();
  for (int i = 0; i < 3; ++i) expert.forward(expert.input(scene));
  expert.eval();
}

class Seeded : public testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(11);
    at::set_num_threads(1);  // threads cost more than they bring at these sizes
  }
};

template <class Expert>
class Decoders : public Seeded {};
using All = testing::Types<expert::SINet, expert::PraNet, expert::ZoomNet, expert::Ujsc>;
TYPED_TEST_SUITE(Decoders, All);

TYPED_TEST(Decoders, GiveAMapOfTheImagesSize) {
  const TinyBackbone backbone;
  for (const int64_t c : {8, 12, 16, 24}) {
    TypeParam expert(narrow<TypeParam>(c));
    for (const auto& [h, w] : std::vector<std::pair<int64_t, int64_t>>{{64, 64}, {96, 96}, {224, 160}}) {
      if (c != 16 && h == 224) continue;
      const auto out = expert.forward(expert.input(backbone.scene(2, h, w)));
      EXPECT_EQ(out.logits.sizes(), at::IntArrayRef({2, 1, h, w}));
      EXPECT_TRUE(out.logits.isfinite().all().template item<bool>());
      EXPECT_EQ(tree::rows(out), 2);
      for (const Tensor& side : out.side) {
        EXPECT_EQ(side.size(1), 1);
        EXPECT_EQ(side.size(2) * w, side.size(3) * h);
      }
    }
  }
}

TYPED_TEST(Decoders, EveryParameterGetsAFiniteGradient) {
  for (const int64_t n : {3, 1}) {
    TinyBackbone backbone;
    TypeParam expert(narrow<TypeParam>(12));
    const auto scene = backbone.scene(n, 64, 96);
    const Tensor target = (at::rand({n, 1, 64, 96}) > 0.7).to(at::kFloat);
    const Tensor loss = expert.loss(expert.forward(expert.input(scene)), target, 0.5);
    ASSERT_EQ(loss.sizes(), at::IntArrayRef({n}));
    EXPECT_TRUE(loss.isfinite().all().template item<bool>());
    loss.sum().backward();
    for (const auto& item : expert.named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_TRUE(item.value().grad().isfinite().all().template item<bool>()) << item.key();
    }
    for (const Tensor& w : backbone.weights) EXPECT_GT(w.grad().abs().sum().template item<double>(), 0);
  }
}

TYPED_TEST(Decoders, TreatImagesIndependentlyInEvaluation) {
  const TinyBackbone backbone;
  TypeParam expert(narrow<TypeParam>(16));
  const Scene scene = backbone.scene(3, 64, 64);
  train_once(expert, scene);
  torch::NoGradGuard no_grad;
  const Tensor order = at::tensor({2, 0, 1});
  const auto all = expert.forward(expert.input(scene)), moved = expert.forward(expert.input(permuted(scene, order)));
  EXPECT_TRUE(at::allclose(moved.logits, all.logits.index_select(0, order), 1e-4, 1e-4));
  for (std::size_t i = 0; i < all.side.size(); ++i)
    EXPECT_TRUE(at::allclose(moved.side[i], all.side[i].index_select(0, order), 1e-4, 1e-4));
  const auto alone = expert.forward(expert.input(permuted(scene, at::tensor({1}))));
  EXPECT_TRUE(at::allclose(alone.logits, all.logits.narrow(0, 1, 1), 1e-4, 1e-4));
  EXPECT_FALSE(at::allclose(all.logits[0], all.logits[1], 1e-3, 1e-3));
}

TYPED_TEST(Decoders, LossIsPerImage) {
  const TinyBackbone backbone;
  TypeParam expert(narrow<TypeParam>(8));
  auto out = expert.forward(expert.input(backbone.scene(2, 64, 64)));
  const Tensor target = (at::rand({2, 1, 64, 64}) > 0.7).to(at::kFloat);
  const auto second = tree::map([](const Tensor& x) { return x.narrow(0, 1, 1); }, out);
  EXPECT_TRUE(at::allclose(expert.loss(out, target, 0.3)[1], expert.loss(second, target.narrow(0, 1, 1), 0.3)[0]));
  EXPECT_TRUE(tree::primary(out).is_same(out.logits));
}

TYPED_TEST(Decoders, LearnToOverfitOnePicture) {
  TinyBackbone backbone;
  TypeParam expert(narrow<TypeParam>(8));
  const Scene scene = tree::map([](const Tensor& x) { return x.detach(); }, backbone.scene(2, 64, 64));
  const Tensor target = (scene.image.mean(1, true) > 0).to(at::kFloat).slice(3, 0, 32);
  const Tensor mask = at::cat({target, at::zeros_like(target)}, 3);
  torch::optim::AdamW optimizer(expert.parameters(), torch::optim::AdamWOptions(3e-3));
  double first = 0, last = 0;
  for (int step = 0; step < 20; ++step) {
    optimizer.zero_grad();
    const Tensor loss = expert.loss(expert.forward(expert.input(scene)), mask, 0.0).mean();
    loss.backward();
    optimizer.step();
    (step == 0 ? first : last) = loss.template item<double>();
  }
  EXPECT_LT(last, 0.95 * first);
}

TYPED_TEST(Decoders, MapsStartNearTheInitialLogit) {
  const TinyBackbone backbone;
  auto options = narrow<TypeParam>(16);
  options.initial_logit = -30;
  TypeParam expert(options);
  const auto out = expert.forward(expert.input(backbone.scene(2, 64, 64)));
  EXPECT_LT(out.logits.mean().template item<double>(), -20);
  for (const Tensor& side : out.side) EXPECT_LT(side.mean().template item<double>(), -20);
}

TYPED_TEST(Decoders, RunUnderAutocastWithMapsInFloat) {
  TinyBackbone backbone;
  TypeParam expert(narrow<TypeParam>(16));
  const Scene scene = backbone.scene(2, 64, 64);
  const Tensor target = (at::rand({2, 1, 64, 64}) > 0.7).to(at::kFloat);
  Tensor loss;
  {
    const AutocastGuard autocast({.device = at::kCPU, .enabled = true, .dtype = at::kBFloat16});
    const auto out = expert.forward(expert.input(scene));
    EXPECT_EQ(out.logits.scalar_type(), at::kFloat);
    loss = expert.loss(out, target, 0.5);
  }
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  loss.sum().backward();
  for (const auto& item : expert.named_parameters())
    EXPECT_TRUE(item.value().grad().isfinite().all().template item<bool>()) << item.key();
}

TYPED_TEST(Decoders, RefuseForeignPyramids) {
  const TinyBackbone backbone;
  Scene scene = backbone.scene(1, 64, 64);
  TypeParam expert(narrow<TypeParam>(8));
  scene.pyramid[2] = scene.pyramid[2].narrow(1, 0, 8);
  EXPECT_THROW(expert.forward(expert.input(scene)), c10::Error);
  scene.pyramid.pop_back();
  EXPECT_THROW(expert.forward(expert.input(scene)), c10::Error);
  auto options = narrow<TypeParam>(4);
  EXPECT_THROW(TypeParam{options}, c10::Error);
}

TEST(DecoderSizes, DefaultsFitTheModelOf85MillionParameters) {
  const std::array<int64_t, 4> sizes{parameters(expert::SINet()), parameters(expert::PraNet()),
                                     parameters(expert::ZoomNet()), parameters(expert::Ujsc())};
  int64_t sum = 0;
  for (const int64_t size : sizes) {
    EXPECT_GE(size, 12'500'000);
    EXPECT_LE(size, 14'000'000);
    sum += size;
  }
  EXPECT_NEAR(double(sum), 52.2e6, 1.5e6);
}

TEST(DecoderSizes, AgreeWithThePublishedArchitectures) {
  EXPECT_NEAR(double(parameters_at<expert::SINet>(32)) / 1e6, 0.84, 0.01);
  EXPECT_NEAR(double(parameters_at<expert::SINet>(144)) / 1e6, 14.42, 0.01);
  EXPECT_NEAR(double(parameters_at<expert::PraNet>(128)) / 1e6, 14.85, 0.01);
  EXPECT_NEAR(double(parameters_at<expert::ZoomNet>(140)) / 1e6, 14.80, 0.15);
  // Two decoders of 15.00 million and the refinement in place of the backbone copies.
  const auto refinement = parameters(expert::decoder::FeatureRefinement(128, 320, 80)) +
                          parameters(expert::decoder::FeatureRefinement(320, 512, 80)) + 31 * 31;
  EXPECT_NEAR(double(parameters_at<expert::Ujsc>(80) - refinement) / 1e6, 15.00, 0.01);
}

TEST(DecoderInputs, NameOnlyWhatIsRead) {
  const TinyBackbone backbone;
  const Scene scene = backbone.scene(2, 64, 96);
  const Levels levels = expert::SINet::input(scene);
  EXPECT_EQ(tree::leaves(levels).size(), 3u);
  EXPECT_FALSE(levels.pyramid[0].defined());
  EXPECT_TRUE(levels.pyramid[1].is_same(scene.pyramid[1]));
  EXPECT_EQ(levels.height, 64);
  EXPECT_EQ(levels.width, 96);
  EXPECT_EQ(tree::leaves(expert::PraNet::input(scene)).size(), 3u);
  EXPECT_EQ(tree::leaves(expert::Ujsc::input(scene)).size(), 4u);
  auto options = narrow<expert::ZoomNet>(8);
  EXPECT_TRUE(expert::ZoomNet(options).input(scene).image.defined());
  options.resample = true;
  EXPECT_FALSE(expert::ZoomNet(options).input(scene).image.defined());
}

class Zoom : public Seeded {};

TEST_F(Zoom, EncodesTwoMoreScalesOfItsRowsOnly) {
  TinyBackbone backbone;
  expert::ZoomNet expert(narrow<expert::ZoomNet>(8));
  const Scene scene = backbone.scene(4, 96, 160);
  const Scene mine = permuted(expert.input(scene), at::tensor({3, 1}));
  EXPECT_TRUE(backbone.seen.empty());
  expert.forward(mine);
  // 0.5 and 1.5 times 96 and 160, to multiples of 32.
  EXPECT_THAT(backbone.seen, testing::ElementsAre(testing::ElementsAre(2, 3, 64, 96),
                                                  testing::ElementsAre(2, 3, 160, 256)));
}

TEST_F(Zoom, GradientReachesTheSharedBackboneThroughTheOtherScales) {
  TinyBackbone backbone;
  expert::ZoomNet expert(narrow<expert::ZoomNet>(8));
  Scene scene = backbone.scene(2, 64, 64);
  for (Tensor& level : scene.pyramid) level = level.detach();
  expert.forward(expert.input(scene)).logits.sum().backward();
  for (const Tensor& w : backbone.weights) {
    ASSERT_TRUE(w.grad().defined());
    EXPECT_GT(w.grad().abs().sum().item<double>(), 0);
  }
  for (const auto& item : expert.named_parameters())
    EXPECT_THAT(item.key(), testing::Not(testing::HasSubstr("encode")));
}

TEST_F(Zoom, ResamplingNeedsNeitherPixelsNorEncoder) {
  TinyBackbone backbone;
  auto options = narrow<expert::ZoomNet>(8);
  options.resample = true;
  expert::ZoomNet expert(options);
  Scene scene = backbone.scene(2, 64, 64);
  scene.encode = nullptr;
  const auto out = expert.forward(expert.input(scene));
  EXPECT_TRUE(backbone.seen.empty());
  EXPECT_EQ(out.logits.sizes(), at::IntArrayRef({2, 1, 64, 64}));
  expert::ZoomNet encoding(narrow<expert::ZoomNet>(8));
  try {
    encoding.forward(encoding.input(scene));
    FAIL() << "an encoder was needed";
  } catch (const c10::Error& e) {
    EXPECT_THAT(e.what_without_backtrace(), testing::HasSubstr("scene.encode"));
  }
}

TEST_F(Zoom, PreparedViewsMayBeRecomputedButEncodingMayNot) {
  TinyBackbone backbone;
  expert::ZoomNet expert(narrow<expert::ZoomNet>(8));
  const Scene scene = backbone.scene(2, 64, 64);
  const auto gradients = [&](auto&& run) {
    for (const Tensor& w : backbone.weights) w.mutable_grad() = Tensor();
    run().logits.square().sum().backward({}, /*retain_graph=*/true);
    std::vector<Tensor> out;
    for (const Tensor& w : backbone.weights) out.push_back(w.grad().clone());
    return out;
  };
  const auto plain = gradients([&] { return expert.forward(scene); });
  const auto repeated = gradients([&] {
    const auto forward = [&expert](const expert::ZoomNet::Views& views) { return expert.forward(views); };
    return recompute(forward, expert.prepare(scene), expert.parameters());
  });
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::allclose(plain[i], repeated[i], 1e-4, 1e-5));
  const auto whole = [&expert](const Scene& s) { return expert.forward(s); };
  EXPECT_THROW(recompute(whole, scene, expert.parameters()).logits.sum().backward(), c10::Error);
}

TEST_F(Zoom, EncodingSeesWhatResamplingCannot) {
  TinyBackbone backbone;
  auto options = narrow<expert::ZoomNet>(8);
  expert::ZoomNet encoding(options);
  encoding.eval();
  torch::NoGradGuard no_grad;
  const Scene scene = backbone.scene(1, 64, 64);
  Scene other = scene;
  other.image = at::randn_like(scene.image);
  EXPECT_GT((encoding.forward(scene).logits - encoding.forward(other).logits).abs().max().item<double>(), 1e-6);
}

class Pieces : public Seeded {};

TEST_F(Pieces, PositionAttentionStartsAsIdentityAndFollowsItsFormula) {
  expert::decoder::PositionAttention attention(8);
  const Tensor x = at::randn({2, 8, 3, 4});
  EXPECT_TRUE(at::equal(attention.forward(x), x));
  torch::NoGradGuard no_grad;
  attention.gamma.fill_(0.5);
  const auto child = [&](const char* name) {
    return std::dynamic_pointer_cast<layers::Conv2d<>>(attention.named_children()[name]);
  };
  const Tensor q = child("query")->forward(x).flatten(2), k = child("key")->forward(x).flatten(2);
  const Tensor v = child("value")->forward(x).flatten(2), y = attention.forward(x).flatten(2);
  for (int64_t i = 0; i < 12; ++i) {
    Tensor scores = at::zeros({12});
    for (int64_t j = 0; j < 12; ++j) scores[j] = (q[1].select(1, i) * k[1].select(1, j)).sum();
    const Tensor weights = scores.exp() / scores.exp().sum();
    const Tensor expected = x[1].flatten(1).select(1, i) + 0.5 * (v[1] * weights).sum(1);
    EXPECT_TRUE(at::allclose(y[1].select(1, i), expected, 1e-4, 1e-5));
  }
}

TEST_F(Pieces, SearchAttentionKeepsSalientPlacesAndWidensThem) {
  expert::decoder::SearchAttention search;
  EXPECT_NEAR(search.kernel.sum().item<double>(), 1, 1e-5);
  Tensor map = at::full({1, 1, 32, 32}, -20.0);
  map.slice(2, 14, 18).slice(3, 14, 18).fill_(20);
  const Tensor y = search.forward(at::ones({1, 2, 32, 32}), map)[0][0];
  EXPECT_NEAR(y[16][16].item<double>(), 1, 1e-3);
  EXPECT_GT(y[16][21].item<double>(), 0.3);
  EXPECT_LT(y[0][0].item<double>(), 1e-3);
  EXPECT_TRUE(search.forward(at::ones({1, 2, 32, 32}), at::zeros({1, 1, 32, 32})).isfinite().all().item<bool>());
}

/// The formula of its docstring, with the channels as (scale, head, d) from left to right.
TEST_F(Pieces, ScaleIntegrationMixesTheScalesHeadByHead) {
  expert::decoder::ScaleIntegration merge(8);
  merge.eval();
  const Tensor large = at::randn({2, 8, 6, 6}), middle = at::randn({2, 8, 4, 5}), small = at::randn({2, 8, 2, 2});
  const auto run = [&](const char* name, const Tensor& x) {
    return std::dynamic_pointer_cast<layers::ConvNorm<>>(merge.named_children()[name])->forward(x);
  };
  const Tensor before = run("before_large", large);
  const Tensor l = run("large", layers::max_pool(before, 4, 5) + layers::average_pool(before, 4, 5));
  const Tensor s = run("small", layers::resize(run("before_small", small), 4, 5));
  const Tensor all = at::cat({l, run("middle", middle), s}, 1);
  const auto by_head = [&](const Tensor& x) {
    return x.reshape({2, 3, 4, 2, 4, 5}).transpose(1, 2).reshape({8, 3, 2, 4, 5});
  };
  const Tensor attention = run("head1", run("head0", by_head(run("attention", all)).flatten(1, 2)));
  const auto score = std::dynamic_pointer_cast<layers::Conv2d<>>(merge.named_children()["score"]);
  const Tensor weights = at::softmax(score->forward(attention), 1);
  const Tensor right = (weights.unsqueeze(2) * by_head(run("value", all))).sum(1).reshape({2, 8, 4, 5});
  EXPECT_TRUE(at::allclose(merge.forward(large, middle, small), right, 1e-5, 1e-6));
}

}  // namespace
