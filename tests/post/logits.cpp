// Means of logits over views and models: laws, what is refused, and the lines of docs/post.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "moecod/io/map_image.hpp"
#include "moecod/post/crf.hpp"
#include "moecod/post/ensemble.hpp"
#include "moecod/post/tta.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using at::Tensor;
using post::Augmented;
using post::Ensemble;
using post::View;
using post::views_from;
using ::testing::HasSubstr;

Tensor pictures(int64_t height = 32, int64_t width = 64) {
  torch::manual_seed(3);
  return at::randn({2, 3, height, width});
}

/// Looks at each pixel alone: equivariant under every flip.
Tensor by_pixel(const Tensor& images) { return at::tanh(images).sum(1, /*keepdim=*/true); }

/// A convolution with a lopsided kernel: not equivariant.
Tensor lopsided(const Tensor& images) {
  torch::manual_seed(5);
  return at::conv2d(images, at::randn({1, 3, 3, 3}).to(images), {}, 1, 1);
}

/// Says of each pixel how wide the picture is.
Tensor width_of(const Tensor& images) {
  return at::full({images.size(0), 1, images.size(2), images.size(3)}, double(images.size(3)));
}

TEST(Views, OfAList) {
  EXPECT_EQ(views_from(""), (std::vector<View>{{}}));
  EXPECT_EQ(views_from("flip"), (std::vector<View>{{1, false}, {1, true}}));
  EXPECT_EQ(views_from("0.75,flip"), (std::vector<View>{{1, false}, {1, true}, {0.75, false}, {0.75, true}}));
  EXPECT_EQ(views_from("vflip,flip"),
            (std::vector<View>{{1, false, false}, {1, true, false}, {1, false, true}, {1, true, true}}));
}

TEST(Views, BadListsAreRefused) {
  const auto error = [](const std::string& list) { return test::error_of([&] { views_from(list); }); };
  for (const std::string word : {"flop", "0", "-1", "11", "1.2x", "nan", " 2"})
    EXPECT_THAT(error("flip," + word), HasSubstr("got '" + word + "'"));
  EXPECT_THAT(error("flip,"), HasSubstr("got ''"));
  EXPECT_THAT(error(","), HasSubstr("got ''"));
  EXPECT_THAT(error("flip,flip"), HasSubstr("flip is there twice"));
  EXPECT_THAT(error("0.5,0.50"), HasSubstr("0.50 is there twice"));
  EXPECT_THAT(error("1"), HasSubstr("scale 1 is always there"));
}

TEST(Augmented, OneViewIsTheModelBitForBit) {
  const Tensor x = pictures(33, 50);  // no size is imposed on it
  EXPECT_TRUE(at::equal(Augmented(lopsided, views_from(""))(x), lopsided(x)));
}

TEST(Augmented, OfAFlipEquivariantFunctionIsTheFunction) {
  const Tensor x = pictures();
  EXPECT_TRUE(at::equal(Augmented(by_pixel, views_from("flip"))(x), by_pixel(x)));
  EXPECT_TRUE(at::equal(Augmented(by_pixel, views_from("flip,vflip"))(x), by_pixel(x)));
}

TEST(Augmented, IsFlipEquivariantWhateverTheFunction) {
  const Tensor x = pictures(64, 96).to(at::kDouble);
  const Tensor flipped = at::flip(x, {3}), down = at::flip(x, {2});
  ASSERT_FALSE(at::allclose(lopsided(flipped), at::flip(lopsided(x), {3})));
  for (const char* list : {"flip,vflip", "vflip,0.5,flip,1.5"}) {
    Augmented augmented(lopsided, views_from(list));
    EXPECT_TRUE(at::allclose(augmented(flipped), at::flip(augmented(x), {3}), 1e-10, 1e-10)) << list;
    EXPECT_TRUE(at::allclose(augmented(down), at::flip(augmented(x), {2}), 1e-10, 1e-10)) << list;
  }
}

TEST(Augmented, IsTheMeanOfItsViews) {
  const Tensor x = pictures();
  const Tensor expected = (lopsided(x) + at::flip(lopsided(at::flip(x, {3})), {3})) / 2;
  EXPECT_TRUE(at::equal(Augmented(lopsided, views_from("flip"))(x), expected));
  const Tensor half = layers::resize(lopsided(layers::resize(x, 32, 32)), 32, 64);  // 16 x 32 at multiples of 32
  EXPECT_TRUE(at::allclose(Augmented(lopsided, views_from("0.5"))(x), (lopsided(x) + half) / 2));
}

TEST(Augmented, ScalesAreSeenAtMultiples) {
  const Tensor mean = Augmented(width_of, views_from("0.75,1.25"))(pictures(96, 96));  // 64 and 128 wide
  EXPECT_TRUE(at::allclose(mean, at::full({2, 1, 96, 96}, (96 + 64 + 128) / 3.0)));
  const Tensor exact = Augmented(width_of, views_from("0.75,1.25"), 1)(pictures(96, 96));  // 72 and 120
  EXPECT_TRUE(at::allclose(exact, at::full({2, 1, 96, 96}, 96.0)));
}

TEST(Augmented, AConstantStaysAtEveryScale) {
  const auto seven = [](const Tensor& x) { return at::full({x.size(0), 1, x.size(2) / 4, x.size(3) / 4}, 7.0); };
  const Tensor mean = Augmented(seven, views_from("flip,0.5,1.5,2"))(pictures(64, 128));
  EXPECT_EQ(mean.sizes(), (std::vector<int64_t>{2, 1, 16, 32}));
  EXPECT_TRUE(at::allclose(mean, at::full_like(mean, 7)));
}

TEST(Augmented, SeesThePicturesAsTheyAreFirst) {
  const Tensor x = pictures();
  std::vector<Tensor> seen;
  Augmented([&](const Tensor& images) { return seen.push_back(images), by_pixel(images); }, views_from("0.5,flip"))(x);
  ASSERT_EQ(seen.size(), 4U);
  EXPECT_TRUE(at::equal(seen[0], x));
}

TEST(Augmented, BadInputIsRefused) {
  const auto error = [](auto&& f) { return test::error_of(f); };
  EXPECT_THAT(error([&] { Augmented(by_pixel, views_from("0.9"))(pictures(96, 96)); }),
              HasSubstr("scale 0.9 of 96 x 96 comes to 96 x 96 at multiples of 32"));
  EXPECT_THAT(error([&] { Augmented(by_pixel, views_from("1.3,1.4"))(pictures(96, 96)); }), HasSubstr("scale 1.4"));
  EXPECT_THAT(error([&] { Augmented(by_pixel, {}); }), HasSubstr("at least one view"));
  EXPECT_THAT(error([&] { Augmented(by_pixel, views_from(""))(at::zeros({3, 32, 32})); }), HasSubstr("[B, C, H, W]"));
  EXPECT_THAT(error([&] { Augmented([](const Tensor& x) { return x[0]; }, views_from(""))(pictures()); }),
              HasSubstr("logits must be"));
}

TEST(Ensemble, IsTheMeanOfItsModels) {
  const Tensor x = pictures();
  EXPECT_TRUE(at::equal(Ensemble({by_pixel})(x), by_pixel(x)));
  EXPECT_TRUE(at::equal(Ensemble({by_pixel, by_pixel})(x), by_pixel(x)));
  EXPECT_TRUE(at::allclose(Ensemble({by_pixel, lopsided, width_of})(x), (by_pixel(x) + lopsided(x) + width_of(x)) / 3));
}

TEST(Ensemble, DoesNotDependOnTheOrder) {
  const Tensor x = pictures().to(at::kDouble);
  EXPECT_TRUE(at::allclose(Ensemble({by_pixel, lopsided, width_of})(x), Ensemble({width_of, by_pixel, lopsided})(x)));
}

TEST(Ensemble, ComposesWithViewsEitherWay) {
  const Tensor x = pictures(64, 64);
  const auto views = views_from("flip,0.5");
  const Tensor within = Ensemble({Augmented(by_pixel, views), Augmented(lopsided, views)})(x);
  EXPECT_TRUE(at::allclose(within, Augmented(Ensemble({by_pixel, lopsided}), views)(x), 1e-5, 1e-5));
}

// The lines of docs/post.md.
TEST(Stages, Compose) {
  const auto model = by_pixel, other = lopsided;
  const Tensor images = pictures(64, 64).slice(0, 0, 1);
  const Image photo(40, 50, 3, 90);
  post::Augmented views(model, post::views_from("flip,0.5,1.5"));
  post::Ensemble ensemble({views, other});
  Image map = io::map_image(ensemble(images)[0][0], photo.height, photo.width);
  map = post::crf(photo, map);
  EXPECT_EQ(map.height, 40);
  EXPECT_EQ(map.width, 50);
}

TEST(Ensemble, SumsHalfPrecisionInFloat) {
  const auto of = [](double value) {
    return [value](const Tensor& x) { return at::full({x.size(0), 1, 2, 2}, value, at::kHalf); };
  };
  const Tensor mean = Ensemble({of(60000), of(60000), of(60000)})(pictures());  // their sum is no half-precision number
  EXPECT_EQ(mean.scalar_type(), at::kFloat);
  EXPECT_EQ(mean.max().item<float>(), at::full({}, 60000.0, at::kHalf).item<float>());
}

TEST(Ensemble, BadInputIsRefused) {
  EXPECT_THAT(test::error_of([] { Ensemble({}); }), HasSubstr("at least one model"));
  const auto other = [](const Tensor& x) { return x.slice(3, 0, 5).sum(1, true); };
  EXPECT_THAT(test::error_of([&] { Ensemble({by_pixel, other})(pictures()); }), HasSubstr("expected shape [2, 1, 32, 64]"));
  EXPECT_THAT(test::error_of([] { post::MeanLogits().mean(); }), HasSubstr("there are none"));
}

}  // namespace
