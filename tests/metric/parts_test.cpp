// The parts that the metrics share, and the metrics that are not a formula of counts, against slow versions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moecod/metric/exact_mean.hpp>
#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/nearest_foreground.hpp>
#include <moecod/metric/pairwise_sum.hpp>
#include <moecod/metric/weighted_f_measure.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

TEST(ExactMean, DoesNotDependOnTheOrderOfAddingAndMerging) {
  std::mt19937 random(3);
  std::vector<double> numbers;
  for (int i = 0; i < 1000; ++i) {
    numbers.push_back(std::ldexp(static_cast<double>(random()), -static_cast<int>(random() % 60)));
  }
  ExactMean forward;
  for (const double number : numbers) {
    forward.add(number);
  }
  for (int trial = 0; trial < 5; ++trial) {
    std::shuffle(numbers.begin(), numbers.end(), random);
    ExactMean parts[3];
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      parts[random() % 3].add(numbers[i]);
    }
    parts[2].merge(parts[0]);
    parts[2].merge(parts[1]);
    EXPECT_EQ(parts[2].value(), forward.value());
    EXPECT_EQ(parts[2].count(), 1000);
  }
}

TEST(ExactMean, OfOneValueIsThatValue) {
  for (const double value : {0.0, 1.0, 1.0 / 3, -0.7, 0x1p52}) {
    ExactMean mean;
    mean.add(value);
    EXPECT_EQ(mean.value(), value);
  }
}

TEST(ExactMean, RejectsWhatItCannotSum) {
  ExactMean mean;
  EXPECT_THROW(mean.add(std::numeric_limits<double>::quiet_NaN()), std::invalid_argument);
  EXPECT_THROW(mean.add(std::numeric_limits<double>::infinity()), std::invalid_argument);
  EXPECT_THROW(mean.value(), std::logic_error);
}

TEST(PairwiseSum, AddsEveryElementOnce) {
  for (const int64_t count : {0, 1, 7, 8, 9, 127, 128, 129, 136, 1000, 4097}) {
    EXPECT_EQ(pairwise_sum(count, [](int64_t i) { return static_cast<double>(i + 1); }),
              static_cast<double>(count * (count + 1) / 2));
  }
}

TEST(ImageStatistics, CountsAgreeWithBinarisedPixels) {
  for (const Maps& maps : random_set(11, 20)) {
    const ImageStatistics image(maps.pair());
    const auto count = [&](const auto& is_predicted) {
      Confusion c;
      for (int64_t pixel = 0; pixel < image.size(); ++pixel) {
        const bool predicted = is_predicted(image.value(maps.prediction[pixel]));
        const bool truth = maps.truth[pixel] > 128;
        (predicted ? (truth ? c.true_positive : c.false_positive) : (truth ? c.false_negative : c.true_negative))++;
      }
      return c;
    };
    const double threshold = std::min(2 * image.mean(), 1.0);
    EXPECT_EQ(image.binary(), count([](double v) { return v > 0.5; }));
    EXPECT_EQ(image.adaptive(), count([&](double v) { return v >= threshold; }));
    for (int index = 0; index < ImageStatistics::kLevels; ++index) {
      EXPECT_EQ(image.curve()[index], count([&](double v) { return std::floor(v * 255) >= 255 - index; }));
    }
  }
}

TEST(ImageStatistics, StretchesEveryImageToTheUnitInterval) {
  Maps maps = constant_maps(2, 2, 100, 255);
  EXPECT_EQ(ImageStatistics(maps.pair()).value(100), 100 / 255.0);
  maps.prediction[3] = 104;
  maps.prediction[2] = 101;
  const ImageStatistics image(maps.pair());
  EXPECT_EQ(image.value(100), 0);
  EXPECT_NEAR(image.value(101), 0.25, 1e-14);
  EXPECT_EQ(image.value(104), 1);
}

TEST(NearestForeground, AgreesWithSearchIncludingTies) {
  for (const Maps& maps : random_set(5, 60)) {
    const MapPair pair = maps.pair();
    int64_t visited = 0;
    visit_nearest_foreground(pair, [&](int64_t row, int64_t column, int64_t nearest_row, int64_t nearest_column) {
      // Columns from the left, rows from above: the first of the nearest within a column, then over the columns.
      int64_t best = std::numeric_limits<int64_t>::max();
      std::pair<int64_t, int64_t> expected;
      for (int64_t c = 0; c < pair.width; ++c) {
        for (int64_t r = 0; r < pair.height; ++r) {
          const int64_t distance = (r - row) * (r - row) + (c - column) * (c - column);
          if (pair.is_foreground(r * pair.width + c) && distance < best) {
            best = distance;
            expected = {r, c};
          }
        }
      }
      ASSERT_EQ(std::pair(nearest_row, nearest_column), expected) << "at " << row << ", " << column;
      ++visited;
    });
    EXPECT_EQ(visited, ImageStatistics(pair).background_size());
  }
}

TEST(NearestForeground, VisitsNothingWithoutForeground) {
  const Maps maps = constant_maps(4, 5, 0, 0);
  visit_nearest_foreground(maps.pair(), [](int64_t, int64_t, int64_t, int64_t) { ADD_FAILURE(); });
}

TEST(WeightedFMeasure, AgreesWithTheFormulaWrittenOut) {
  for (const Maps& maps : random_set(23, 25)) {
    const MapPair pair = maps.pair();
    const ImageStatistics image(pair);
    std::vector<double> moved(maps.truth.size());
    std::vector<double> distance(maps.truth.size(), 0);
    for (std::size_t pixel = 0; pixel < moved.size(); ++pixel) {
      moved[pixel] = 1 - image.value(maps.prediction[pixel]);
    }
    visit_nearest_foreground(pair, [&](int64_t row, int64_t column, int64_t r, int64_t c) {
      moved[row * pair.width + column] = 1 - image.value(maps.prediction[r * pair.width + c]);
      distance[row * pair.width + column] = std::hypot(r - row, c - column);
    });
    double kernel_sum = 0;
    for (int y = -3; y <= 3; ++y) {
      for (int x = -3; x <= 3; ++x) {
        kernel_sum += std::exp(-(x * x + y * y) / 50.0);
      }
    }
    double on_foreground = 0;
    double on_background = 0;
    for (int64_t row = 0; row < pair.height; ++row) {
      for (int64_t column = 0; column < pair.width; ++column) {
        const int64_t pixel = row * pair.width + column;
        const double value = image.value(maps.prediction[pixel]);
        if (!pair.is_foreground(pixel)) {
          on_background += value * (2 - std::pow(0.5, distance[pixel] / 5));
          continue;
        }
        double smooth = 0;
        for (int64_t y = std::max<int64_t>(0, row - 3); y <= std::min(pair.height - 1, row + 3); ++y) {
          for (int64_t x = std::max<int64_t>(0, column - 3); x <= std::min(pair.width - 1, column + 3); ++x) {
            const auto squared = static_cast<double>((y - row) * (y - row) + (x - column) * (x - column));
            smooth += moved[y * pair.width + x] * std::exp(-squared / 50.0) / kernel_sum;
          }
        }
        on_foreground += std::min(smooth, 1 - value);
      }
    }
    const auto foreground = static_cast<double>(image.foreground_size());
    const double recall = 1 - on_foreground / foreground;
    const double precision = (foreground - on_foreground) / (foreground - on_foreground + on_background);
    EXPECT_NEAR(WeightedFMeasure::of(image), 2 * recall * precision / (recall + precision), 1e-12);
  }
}

}  // namespace
