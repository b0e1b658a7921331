// The dense random field against plain double loops over both labels, its laws, and how near the lattice comes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "moecod/post/crf.hpp"
#include "moecod/post/filter/pairwise.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using post::crf;
using post::CrfOptions;
using Values = std::vector<double>;
using Exact = post::filter::Pairwise<5>;
using Lattice = post::filter::Permutohedral<5>;
using ::testing::HasSubstr;

double largest_difference(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

double mean_difference(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / double(a.size());
}

/// A blob of one colour on another, both noisy, and a map that is roughly right.
struct Scene {
  Image rgb;
  Values probabilities;

  Scene(int64_t height, int64_t width, uint64_t seed, double noise = 12) : rgb(height, width, 3) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) {
        const double dy = (double(y) - 0.45 * double(height)) / (0.3 * double(height));
        const double dx = (double(x) - 0.55 * double(width)) / (0.25 * double(width));
        const double inside = 1 / (1 + std::exp(8 * (dy * dy + dx * dx - 1)));
        for (int64_t c = 0; c < 3; ++c)
          rgb.at(y, x, c) = uint8_t(std::clamp(90 + 20.0 * double(c) + 30 * inside + noise * normal(random), 0.0, 255.0));
        probabilities.push_back(1 / (1 + std::exp(-(4 * inside - 2 + 0.8 * normal(random)))));
      }
  }
};

/// The field as the paper writes it: both labels, a penalty for the other one, softmax over two.
Values by_hand(const Scene& scene, const CrfOptions& o) {
  const int64_t height = scene.rgb.height, width = scene.rgb.width, n = height * width;
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  std::vector<std::array<double, 2>> unary, q;
  for (const double p : scene.probabilities)
    unary.push_back({-std::log(1 - p + 1e-8) / (o.tau * sigmoid(1 - p)), -std::log(p + 1e-8) / (o.tau * sigmoid(p))});
  const auto softmax = [](double background, double foreground) -> std::array<double, 2> {
    const double least = std::min(background, foreground);
    const double a = std::exp(least - background), b = std::exp(least - foreground);
    return {a / (a + b), b / (a + b)};
  };
  for (const auto& u : unary) q.push_back(softmax(u[0], u[1]));

  const auto kernel = [&](int term, int64_t i, int64_t j) {
    const double dy = double(i / width - j / width), dx = double(i % width - j % width);
    double exponent = (dy * dy + dx * dx) / (2 * (term == 0 ? o.smooth_sxy * o.smooth_sxy : o.sxy * o.sxy));
    for (int64_t c = 0; term == 1 && c < 3; ++c) {
      const double d = double(scene.rgb.pixels[std::size_t(3 * i + c)]) - double(scene.rgb.pixels[std::size_t(3 * j + c)]);
      exponent += d * d / (2 * o.srgb * o.srgb);
    }
    return std::exp(-exponent);
  };
  std::array<Values, 2> sums{Values(std::size_t(n), 0.0), Values(std::size_t(n), 0.0)};
  for (int term = 0; term < 2; ++term)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) sums[std::size_t(term)][std::size_t(i)] += kernel(term, i, j);
  for (int64_t iteration = 0; iteration < o.iterations; ++iteration) {
    auto next = q;
    for (int64_t i = 0; i < n; ++i) {
      std::array<double, 2> energy = unary[std::size_t(i)];
      for (int term = 0; term < 2; ++term)
        for (int64_t j = 0; j < n; ++j) {
          const double k = kernel(term, i, j) /
                           std::sqrt(sums[std::size_t(term)][std::size_t(i)] * sums[std::size_t(term)][std::size_t(j)]);
          const double weight = term == 0 ? o.smooth_compat : o.compat;
          energy[0] += weight * k * q[std::size_t(j)][1];
          energy[1] += weight * k * q[std::size_t(j)][0];
        }
      next[std::size_t(i)] = softmax(energy[0], energy[1]);
    }
    q = next;
  }
  Values out;
  for (const auto& both : q) out.push_back(both[1]);
  return out;
}

TEST(Crf, ExactFiltersEqualTheDefinition) {
  for (const CrfOptions& o : {CrfOptions{}, CrfOptions{.iterations = 3}, CrfOptions{.tau = 1.3, .smooth_sxy = 1.5,
                              .sxy = 4, .srgb = 20, .compat = 2}}) {
    const Scene scene(13, 17, 1);
    EXPECT_LT(largest_difference(crf<Exact>(scene.rgb, scene.probabilities, o), by_hand(scene, o)), 1e-9);
  }
  const Scene line(1, 40, 2);
  EXPECT_LT(largest_difference(crf<Exact>(line.rgb, line.probabilities), by_hand(line, {})), 1e-9);
}

// What the approximation reaches at the default parameters. Its kernel is not a Gaussian but a piecewise polynomial of
// about the right width, so this is no rounding error and does not shrink with more precision.
TEST(Crf, LatticeComesNearTheDefinition) {
  for (const double noise : {3.0, 12.0, 30.0}) {
    const Scene scene(32, 28, 3, noise);
    const Values exact = crf<Exact>(scene.rgb, scene.probabilities), near = crf(scene.rgb, scene.probabilities);
    EXPECT_LT(mean_difference(exact, near), 0.004) << "noise " << noise;
    EXPECT_LT(largest_difference(exact, near), 0.2) << "noise " << noise;
  }
}

TEST(Crf, NoPairwiseTermGivesBackTheSoftmaxOfTheEvidence) {
  const Scene scene(9, 11, 4);
  const Values u = post::crf_unary(scene.probabilities);
  Values softmax;
  for (const double x : u) softmax.push_back(1.0 / (1.0 + std::exp(-x)));
  EXPECT_EQ(crf(scene.rgb, scene.probabilities, {.iterations = 0}), softmax);
  EXPECT_EQ(crf(scene.rgb, scene.probabilities, {.iterations = 4, .smooth_compat = 0, .compat = 0}), softmax);
  EXPECT_EQ(post::mean_field(u, 3, post::Term{0.0, post::filter::Separable(9, 11, 3)}), softmax);
}

TEST(Crf, UnaryByHand) {
  const double p = 0.8, tau = 1.05;
  const double background = -std::log(1 - p + 1e-8) / (tau / (1 + std::exp(-(1 - p))));
  const double foreground = -std::log(p + 1e-8) / (tau / (1 + std::exp(-p)));
  EXPECT_NEAR(post::crf_unary({p})[0], background - foreground, 1e-12);
  EXPECT_EQ(post::crf_unary({0.5})[0], 0.0);
  EXPECT_TRUE(std::isfinite(post::crf_unary({0.0})[0]) && std::isfinite(post::crf_unary({1.0})[0]));
}

template <class Filter>
struct CrfLaws : testing::Test {};
using Filters = testing::Types<Exact, Lattice>;
TYPED_TEST_SUITE(CrfLaws, Filters);

TYPED_TEST(CrfLaws, ExchangingTheLabelsExchangesTheAnswer) {
  const Scene scene(12, 15, 5);
  Values other;
  for (const double p : scene.probabilities) other.push_back(1 - p);
  const Values q = crf<TypeParam>(scene.rgb, scene.probabilities, {.iterations = 3});
  Values mirrored = crf<TypeParam>(scene.rgb, other, {.iterations = 3});
  for (double& x : mirrored) x = 1 - x;
  EXPECT_LT(largest_difference(q, mirrored), 1e-7);
}

TYPED_TEST(CrfLaws, NoEvidenceStaysUndecided) {
  const Scene scene(12, 15, 6);
  EXPECT_THAT(crf<TypeParam>(scene.rgb, Values(12 * 15, 0.5), {.iterations = 3}), testing::Each(0.5));
}

/// Where pixel (y, x) of a picture comes from, for mirroring in either direction or both.
Image mirrored(const Image& image, bool left_right, bool up_down) {
  Image out = image;
  for (int64_t y = 0; y < image.height; ++y)
    for (int64_t x = 0; x < image.width; ++x)
      for (int64_t c = 0; c < image.channels; ++c)
        out.at(y, x, c) = image.at(up_down ? image.height - 1 - y : y, left_right ? image.width - 1 - x : x, c);
  return out;
}
Values mirrored(const Values& values, int64_t height, int64_t width, bool left_right, bool up_down) {
  Values out;
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      out.push_back(values[std::size_t((up_down ? height - 1 - y : y) * width + (left_right ? width - 1 - x : x))]);
  return out;
}

// Odd and even sizes: the middle column of an odd one lies on faces of the lattice.
TYPED_TEST(CrfLaws, MirroringThePictureMirrorsTheAnswer) {
  for (const auto& [height, width] : {std::pair{14, 18}, std::pair{15, 21}}) {
    const Scene scene(height, width, 7);
    const Values q = crf<TypeParam>(scene.rgb, scene.probabilities, {.iterations = 2});
    for (const auto& [left_right, up_down] : {std::pair{true, false}, std::pair{false, true}, std::pair{true, true}}) {
      const Values other = crf<TypeParam>(mirrored(scene.rgb, left_right, up_down),
                                          mirrored(scene.probabilities, height, width, left_right, up_down),
                                          {.iterations = 2});
      EXPECT_LT(largest_difference(mirrored(q, height, width, left_right, up_down), other), 2e-6);
    }
  }
}

TYPED_TEST(CrfLaws, SymmetricPictureGivesASymmetricAnswer) {
  Scene scene(15, 21, 8);
  for (int64_t y = 0; y < 15; ++y)
    for (int64_t x = 0; x < 10; ++x) {
      for (int64_t c = 0; c < 3; ++c) scene.rgb.at(y, 20 - x, c) = scene.rgb.at(y, x, c);
      scene.probabilities[std::size_t(y * 21 + 20 - x)] = scene.probabilities[std::size_t(y * 21 + x)];
    }
  const Values q = crf<TypeParam>(scene.rgb, scene.probabilities, {.iterations = 2});
  EXPECT_LT(largest_difference(q, mirrored(q, 15, 21, true, false)), 2e-6);
}

TYPED_TEST(CrfLaws, LoneWrongPixelIsCorrected) {
  Image flat(9, 9, 3, 100);
  Values p(81, 0.1);
  p[40] = 0.7;
  EXPECT_LT(crf<TypeParam>(flat, p)[40], 0.1);
  for (int64_t c = 0; c < 3; ++c) flat.at(4, 4, c) = 200;  // of another colour it keeps more of its own opinion
  EXPECT_GT(crf<TypeParam>(flat, p, {.smooth_compat = 0})[40], 0.9);
}

TYPED_TEST(CrfLaws, EveryPixelCountsOnceInAnyOrder) {
  std::mt19937_64 random(9);
  std::normal_distribution<double> normal;
  std::vector<post::Feature<5>> points(200);
  Values values;
  for (auto& point : points) {
    for (double& x : point) x = normal(random);
    values.push_back(normal(random));
  }
  const Values result = TypeParam(points).apply(values);
  std::vector<std::size_t> order(points.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), random);
  std::vector<post::Feature<5>> other_points;
  Values other_values, expected;
  for (const std::size_t i : order) {
    other_points.push_back(points[i]);
    other_values.push_back(values[i]);
    expected.push_back(result[i]);
  }
  EXPECT_LT(largest_difference(TypeParam(other_points).apply(other_values), expected), 2e-5);
}

TYPED_TEST(CrfLaws, FiltersAreLinear) {
  const Scene scene(10, 10, 10);
  const TypeParam filter(post::bilateral_features(scene.rgb, 60, 5));
  Values a = scene.probabilities, b = a, sum;
  std::reverse(b.begin(), b.end());
  for (std::size_t i = 0; i < a.size(); ++i) sum.push_back(2 * a[i] - 3 * b[i]);
  const Values fa = filter.apply(a), fb = filter.apply(b);
  Values expected;
  for (std::size_t i = 0; i < a.size(); ++i) expected.push_back(2 * fa[i] - 3 * fb[i]);
  EXPECT_LT(largest_difference(filter.apply(sum), expected), 1e-4);
}

TEST(Filters, SeparableEqualsPairwise) {
  for (const auto& [height, width, sxy] : {std::tuple{20, 31, 3.0}, std::tuple{1, 9, 2.0}, std::tuple{12, 12, 0.2},
                                           std::tuple{8, 30, 100.0}}) {
    std::vector<post::Feature<2>> points;
    Values values;
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) {
        points.push_back({double(x) / sxy, double(y) / sxy});
        values.push_back(std::sin(double(3 * y + 7 * x)));
      }
    EXPECT_LT(largest_difference(post::filter::Separable(height, width, sxy).apply(values),
                                 post::filter::Pairwise<2>(points).apply(values)),
              1e-9);
  }
}

/// Relative error of the symmetrically normalised filter over points of D features at random.
template <std::size_t D>
double lattice_error(std::size_t count, double spread) {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> uniform(0, spread);
  std::normal_distribution<double> normal;
  std::vector<post::Feature<D>> points(count);
  Values values;
  for (auto& point : points) {
    for (double& x : point) x = uniform(random);
    values.push_back(std::sin(point[0]) + 0.5);
  }
  const Values exact = post::filter::Symmetric(post::filter::Pairwise<D>(points)).apply(values);
  const Values near = post::filter::Symmetric(post::filter::Permutohedral<D>(points)).apply(values);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < count; ++i) {
    error += (exact[i] - near[i]) * (exact[i] - near[i]);
    size += exact[i] * exact[i];
  }
  return std::sqrt(error / size);
}

TEST(Filters, LatticeApproximatesTheGaussianInAnyDimension) {
  EXPECT_LT(lattice_error<1>(1500, 6), 0.03);
  EXPECT_LT(lattice_error<2>(1500, 6), 0.03);
  EXPECT_LT(lattice_error<3>(1500, 4), 0.03);
  EXPECT_LT(lattice_error<5>(1500, 3), 0.03);
  EXPECT_LT(lattice_error<6>(1500, 2), 0.03);
}

// Far from any edge of a dense cloud of points the lattice also has the right size, without normalisation.
TEST(Filters, LatticeKeepsTheSumOfTheKernel) {
  std::vector<post::Feature<2>> points;
  for (int64_t y = 0; y < 80; ++y)
    for (int64_t x = 0; x < 80; ++x) points.push_back({0.1 * double(x), 0.1 * double(y)});
  const Values ones(points.size(), 1.0);
  const std::size_t middle = 40 * 80 + 40;
  EXPECT_NEAR(post::filter::Permutohedral<2>(points).apply(ones)[middle] /
                  post::filter::Pairwise<2>(points).apply(ones)[middle], 1.0, 0.01);
}

TEST(Crf, OfAMapInMemory) {
  const Scene scene(16, 12, 12);
  Image map(16, 12, 1);
  for (std::size_t i = 0; i < map.pixels.size(); ++i) map.pixels[i] = uint8_t(255 * scene.probabilities[i]);
  Values probabilities;
  for (const uint8_t value : map.pixels) probabilities.push_back(value / 255.0);
  const Values q = crf(scene.rgb, probabilities);
  const Image out = crf(scene.rgb, map);
  for (std::size_t i = 0; i < q.size(); ++i) EXPECT_NEAR(out.pixels[i], 255 * q[i], 0.5 + 1e-9);
}

TEST(Crf, BadInputIsRefusedByName) {
  const Image rgb(4, 5, 3, 9), grey(4, 5, 1, 9);
  const Values p(20, 0.3);
  const auto error = [](auto&& f) { return test::error_of(f); };
  EXPECT_THAT(error([&] { crf(grey, p); }), HasSubstr("4 x 5 x 1"));
  EXPECT_THAT(error([&] { crf(rgb, Values(19, 0.3)); }), HasSubstr("and 19"));
  EXPECT_THAT(error([&] { crf(Image(), Values()); }), HasSubstr("expected an RGB picture"));
  EXPECT_THAT(error([&] { crf(rgb, Values(20, 1.5)); }), HasSubstr("[0, 1], got 1.5"));
  EXPECT_THAT(error([&] { crf(rgb, Values(20, NAN)); }), HasSubstr("[0, 1], got nan"));
  EXPECT_THAT(error([&] { crf(rgb, p, {.iterations = -1}); }), HasSubstr("--crf-iterations"));
  EXPECT_THAT(error([&] { crf(rgb, p, {.tau = 0}); }), HasSubstr("--crf-tau"));
  EXPECT_THAT(error([&] { crf(rgb, p, {.srgb = -5}); }), HasSubstr("--crf-srgb"));
  EXPECT_THAT(error([&] { crf(rgb, Image(5, 4, 1)); }), HasSubstr("4 x 5, got 5 x 4"));
  EXPECT_THAT(error([&] { crf(rgb, rgb); }), HasSubstr("must be grey"));
  EXPECT_THAT(error([&] { post::mean_field({0.0}, -2); }), HasSubstr("got -2"));
  EXPECT_THAT(error([&] { post::mean_field({0.0}, 1, post::Term{1.0, post::filter::Separable(2, 2, 1)}); }),
              HasSubstr("expected 4 values, got 1"));
  EXPECT_THAT(error([&] { post::filter::Separable(2, 2, 0); }), HasSubstr("must be positive"));
  EXPECT_THAT(error([&] { Lattice({{0, 0, 0, 0, INFINITY}}); }), HasSubstr("must be finite"));
  EXPECT_THAT(error([&] { Exact({{0, 0, 0, 0, 0}}).apply({}); }), HasSubstr("expected 1 values, got 0"));
}

}  // namespace
