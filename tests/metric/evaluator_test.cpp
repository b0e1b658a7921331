// Laws of the metrics and of the evaluator.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <moecod/metric/evaluator.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

Evaluator evaluated(const Maps& maps) {
  Evaluator evaluator;
  evaluator.add(maps.pair());
  return evaluator;
}

double figure(const Evaluator& evaluator, const std::string& name) {
  for (const NamedValue& metric : evaluator.results()) {
    if (metric.name == name) {
      return metric.value;
    }
  }
  throw std::invalid_argument("no metric " + name);
}

std::vector<double> values(const Evaluator& evaluator) {
  std::vector<double> out;
  for (const NamedValue& metric : evaluator.results()) {
    out.push_back(metric.value);
  }
  return out;
}

TEST(Metrics, PerfectPredictionIsBest) {
  for (const Maps& drawn : random_set(7, 20)) {
    Maps maps = drawn;
    maps.prediction = maps.truth;
    const auto size = static_cast<double>(maps.truth.size());
    for (const auto& [name, value] : evaluated(maps).results()) {
      const bool is_error = name == "mae" || name.starts_with("ber");
      const bool includes_threshold_zero = name.ends_with("_mean") || name == "ber_max";
      if (includes_threshold_zero) {
        EXPECT_GE(value, 0) << name;
        continue;
      }
      const double best = is_error ? 0 : name.starts_with("emeasure") ? size / (size - 1) : 1;
      EXPECT_NEAR(value, best, 1e-9) << name;
    }
  }
}

TEST(Metrics, InvertedPredictionIsWorst) {
  for (const Maps& drawn : random_set(8, 20)) {
    Maps maps = drawn;
    for (std::size_t pixel = 0; pixel < maps.truth.size(); ++pixel) {
      maps.prediction[pixel] = static_cast<uint8_t>(255 - maps.truth[pixel]);
    }
    const Evaluator evaluator = evaluated(maps);
    EXPECT_EQ(figure(evaluator, "mae"), 1);
    EXPECT_EQ(figure(evaluator, "iou_binary"), 0);
    EXPECT_EQ(figure(evaluator, "ber_binary"), 1);
  }
}

TEST(Metrics, ComplementOfThePredictionComplementsTheError) {
  for (const Maps& maps : random_set(9, 20)) {
    Maps inverted = maps;
    for (uint8_t& level : inverted.prediction) {
      level = static_cast<uint8_t>(255 - level);
    }
    EXPECT_NEAR(figure(evaluated(maps), "mae") + figure(evaluated(inverted), "mae"), 1, 1e-12);
  }
}

TEST(Metrics, TranspositionChangesNothing) {
  for (const Maps& maps : random_set(10, 40)) {
    const ImageStatistics image(maps.pair());
    const Maps other = maps.transposed();
    const ImageStatistics transposed(other.pair());
    EXPECT_EQ(image.curve(), transposed.curve());
    EXPECT_NEAR(SMeasure::of(image), SMeasure::of(transposed), 1e-12);
    EXPECT_NEAR(Mae::of(image), Mae::of(transposed), 1e-12);
  }
}

TEST(Metrics, DiceIsAFunctionOfIou) {
  for (const Maps& maps : random_set(12, 10)) {
    const ImageStatistics image(maps.pair());
    for (const Confusion& c : image.curve()) {
      EXPECT_NEAR(Dice::of(c), 2 * Iou::of(c) / (1 + Iou::of(c)), 1e-15);
    }
  }
}

TEST(Metrics, MissingClassesFollowTheirDefinitions) {
  const Confusion nothing_right{0, 0, 6, 0};
  EXPECT_EQ(Iou::of(nothing_right), 0);
  EXPECT_EQ(Dice::of(nothing_right), 0);
  EXPECT_EQ(FMeasure::of(nothing_right), 0);
  EXPECT_EQ(Ber::of(nothing_right), 0.5);
  EXPECT_DOUBLE_EQ(EMeasure::of(nothing_right), 6.0 / 5);
  EXPECT_EQ(EMeasure::of({0, 6, 0, 0}), 0);
  EXPECT_DOUBLE_EQ(EMeasure::of({4, 0, 0, 2}), 4.0 / 5);

  const Maps empty = constant_maps(2, 3, 51, 0);
  EXPECT_DOUBLE_EQ(figure(evaluated(empty), "smeasure"), 0.8);
  EXPECT_EQ(figure(evaluated(empty), "wfmeasure"), 0);
  EXPECT_DOUBLE_EQ(figure(evaluated(empty), "mae"), 0.2);
  const Maps full = constant_maps(2, 3, 51, 255);
  EXPECT_DOUBLE_EQ(figure(evaluated(full), "smeasure"), 0.2);
  EXPECT_DOUBLE_EQ(figure(evaluated(full), "mae"), 0.8);
  // A constant map lies below twice its mean, unless it is zero.
  EXPECT_EQ(figure(evaluated(full), "iou_adaptive"), 0);
  EXPECT_EQ(figure(evaluated(constant_maps(2, 3, 0, 255)), "iou_adaptive"), 1);
}

TEST(Metrics, TruthIsForegroundAbove128) {
  Maps maps = constant_maps(1, 2, 0, 128);
  maps.truth[1] = 129;
  EXPECT_EQ(ImageStatistics(maps.pair()).foreground_size(), 1);
}

TEST(Metrics, OnePixelIsDefined) {
  for (const uint8_t prediction : {0, 90, 255}) {
    for (const uint8_t truth : {0, 255}) {
      const Evaluator evaluator = evaluated(constant_maps(1, 1, prediction, truth));
      for (const NamedValue& metric : evaluator.results()) {
        EXPECT_TRUE(std::isfinite(metric.value)) << metric.name;
      }
      const double value = prediction / 255.0;
      EXPECT_DOUBLE_EQ(figure(evaluator, "smeasure"), truth == 0 ? 1 - value : value);
    }
  }
  EXPECT_EQ(EMeasure::of({1, 0, 0, 0}), 0x1p52);
}

TEST(SMeasure, EmptyBlocksAddNothing) {
  // The centroid is on the last row, so only the two upper blocks have pixels: each matches its truth perfectly.
  Maps maps = constant_maps(1, 4, 0, 0);
  maps.truth = {0, 255, 255, 0};
  maps.prediction = maps.truth;
  EXPECT_NEAR(SMeasure::of(ImageStatistics(maps.pair())), 1, 1e-12);
  for (const Maps& drawn : random_set(13, 30)) {
    Maps last = drawn;
    std::fill(last.truth.begin(), last.truth.end(), 0);
    last.truth.back() = 255;
    const double score = SMeasure::of(ImageStatistics(last.pair()));
    EXPECT_GE(score, 0);
    EXPECT_LE(score, 1);
  }
}

TEST(Evaluator, ReportsTheseFiguresInThisOrder) {
  std::vector<std::string> names;
  for (const NamedValue& metric : evaluated(constant_maps(3, 3, 10, 0)).results()) {
    names.push_back(metric.name);
  }
  EXPECT_THAT(names, testing::ElementsAre(
                         "smeasure", "emeasure_max", "emeasure_mean", "emeasure_adaptive", "fmeasure_max",
                         "fmeasure_mean", "fmeasure_adaptive", "wfmeasure", "mae", "iou_max", "iou_mean",
                         "iou_adaptive", "iou_binary", "dice_max", "dice_mean", "dice_adaptive", "dice_binary",
                         "ber_max", "ber_mean", "ber_adaptive", "ber_binary"));
}

TEST(Evaluator, AveragesCurvesBeforeTakingTheMaximum) {
  // Two images whose best thresholds differ: the maximum of the mean curve is below the mean of the maxima.
  Maps low = constant_maps(1, 4, 0, 0);
  low.truth = {255, 255, 0, 0};
  low.prediction = {255, 40, 0, 0};
  Maps high = low;
  high.prediction = {255, 250, 100, 0};
  Evaluator both = evaluated(low);
  both.add(high.pair());
  const auto curve = both.get<Thresholded<Iou>>().curve();
  EXPECT_EQ(figure(both, "iou_max"), *std::max_element(curve.begin(), curve.end()));
  EXPECT_EQ(figure(evaluated(low), "iou_max"), 1);
  EXPECT_EQ(figure(evaluated(high), "iou_max"), 1);
  EXPECT_LT(figure(both, "iou_max"), 1);
}

TEST(Evaluator, ThreadsAndOrderOfMergingDoNotChangeABit) {
  const std::vector<Maps> set = random_set(17, 60);
  Evaluator whole;
  for (const Maps& maps : set) {
    whole.add(maps.pair());
  }
  for (const std::size_t threads : {1, 2, 3, 7}) {
    std::vector<Evaluator> parts(threads);
    {
      std::vector<std::jthread> pool;
      for (std::size_t thread = 0; thread < threads; ++thread) {
        pool.emplace_back([&, thread] {
          for (std::size_t i = thread; i < set.size(); i += threads) {
            parts[thread].add(set[i].pair());
          }
        });
      }
    }
    Evaluator merged;
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      merged.merge(*part);
    }
    EXPECT_EQ(merged.images(), 60);
    EXPECT_EQ(values(merged), values(whole)) << threads << " threads";
  }
}

TEST(Evaluator, BadPairsAreErrorsAndCountNothing) {
  const Maps maps = constant_maps(2, 2, 9, 0);
  Evaluator evaluator;
  EXPECT_THROW(evaluator.results(), std::logic_error);
  EXPECT_THROW(evaluator.add(MapPair{nullptr, maps.truth.data(), 2, 2}), std::invalid_argument);
  EXPECT_THROW(evaluator.add(MapPair{maps.prediction.data(), nullptr, 2, 2}), std::invalid_argument);
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{0, 2}, {2, 0}, {-1, -4}, {1 << 20, 1 << 20}}) {
    EXPECT_THROW(evaluator.add(MapPair{maps.prediction.data(), maps.truth.data(), height, width}),
                 std::invalid_argument);
  }
  EXPECT_EQ(evaluator.images(), 0);
}

struct ForegroundShare {
  static constexpr const char* name = "share";
  static double of(const ImageStatistics& image) {
    return static_cast<double>(image.foreground_size()) / static_cast<double>(image.size());
  }
};

TEST(Evaluator, TakesAUsersOwnMetric) {
  BasicEvaluator<Average<ForegroundShare>> evaluator;
  evaluator.add(constant_maps(2, 2, 0, 255).pair());
  evaluator.add(constant_maps(2, 2, 0, 0).pair());
  ASSERT_EQ(evaluator.results().size(), 1U);
  EXPECT_EQ(evaluator.results().front().name, "share");
  EXPECT_EQ(evaluator.results().front().value, 0.5);
}

}  // namespace
