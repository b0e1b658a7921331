#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// The levels of an 8-bit map.
inline constexpr int kLevels = 256;

/// How many pixels have each level.
using Histogram = std::array<int64_t, kLevels>;

/// The counts of one map at every threshold, from the histograms of its foreground and background (by the truth) and
/// the value v in [0, 1] of each level.
///   curve()[i]    counts of trunc(255 v) >= 255 - i, for i = 0 ... 255
///   adaptive()    counts of v >= min(2 mean, 1)
///   binary()      counts of v > 0.5
/// All are float64 in the operation order of PySODMetrics.
class ThresholdCounts {
 public:
  using Curve = std::array<Confusion, kLevels>;

  ThresholdCounts() = default;

  ThresholdCounts(const Histogram& foreground, const Histogram& background, const std::array<double, kLevels>& values,
                  double mean) {
    const double threshold = std::min(2 * mean, 1.0);
    Histogram foreground_bins{};
    Histogram background_bins{};
    Confusion all;
    for (int level = 0; level < kLevels; ++level) {
      const auto bin = static_cast<uint8_t>(values[level] * 255);
      foreground_bins[bin] += foreground[level];
      background_bins[bin] += background[level];
      all.true_positive += foreground[level];
      all.false_positive += background[level];
    }
    const auto counts = [&](int64_t true_positive, int64_t false_positive) {
      return Confusion{true_positive, false_positive, all.false_positive - false_positive,
                       all.true_positive - true_positive};
    };
    const auto counts_where = [&](const auto& predicate) {
      int64_t true_positive = 0;
      int64_t false_positive = 0;
      for (int level = 0; level < kLevels; ++level) {
        if (predicate(values[level])) {
          true_positive += foreground[level];
          false_positive += background[level];
        }
      }
      return counts(true_positive, false_positive);
    };
    int64_t true_positive = 0;
    int64_t false_positive = 0;
    for (int index = 0; index < kLevels; ++index) {
      true_positive += foreground_bins[kLevels - 1 - index];
      false_positive += background_bins[kLevels - 1 - index];
      curve_[index] = counts(true_positive, false_positive);
    }
    adaptive_ = counts_where([&](double value) { return value >= threshold; });
    binary_ = counts_where([](double value) { return value > 0.5; });
  }

  const Curve& curve() const { return curve_; }
  const Confusion& adaptive() const { return adaptive_; }
  const Confusion& binary() const { return binary_; }

 private:
  Curve curve_{};
  Confusion adaptive_;
  Confusion binary_;
};

}  // namespace moecod::metric
