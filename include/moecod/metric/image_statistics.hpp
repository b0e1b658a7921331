#pragma once

#include <array>
#include <cstdint>

#include <moecod/metric/confusion.hpp>
#include <moecod/metric/map_pair.hpp>
#include <moecod/metric/pairwise_sum.hpp>
#include <moecod/metric/threshold_counts.hpp>

#ifdef __FAST_MATH__
#error "moecod/metric must be compiled without -ffast-math: the metrics are defined down to the order of rounding"
#endif

namespace moecod::metric {

/// 2^-52, the epsilon of every formula in this folder.
inline constexpr double kEpsilon = 0x1p-52;

/// What the metrics of one image share: values of the levels, histograms, mean, and the counts at every threshold.
///
/// Level p of the prediction has the value v(p) = p / 255, and (v - min) / (max - min) if the image is not constant.
/// curve(), adaptive() and binary() are the counts of threshold_counts.hpp.
/// All are float64 in the operation order of PySODMetrics. No product feeds a sum on the way to a bin or a threshold,
/// so there is nothing for the compiler to contract (GCC contracts under -mfma or -march=native); reordering under
/// -ffast-math is refused above.
///
/// One pass for the histograms and one for the mean; everything else works on 256 levels. Keeps the view, so the
/// maps must outlive it. Errors: std::invalid_argument from check(MapPair).
class ImageStatistics {
 public:
  static constexpr int kLevels = metric::kLevels;
  using Histogram = metric::Histogram;
  using Curve = ThresholdCounts::Curve;

  explicit ImageStatistics(const MapPair& pair) : pair_(pair) {
    check(pair);
    count_levels();
    set_values();
    mean_ = pairwise_sum(pair_.size(), [this](int64_t pixel) { return values_[pair_.prediction[pixel]]; }) /
            static_cast<double>(pair_.size());
    counts_ = ThresholdCounts(foreground_levels_, background_levels_, values_, mean_);
  }

  const MapPair& pair() const { return pair_; }
  int64_t size() const { return pair_.size(); }
  int64_t foreground_size() const { return foreground_size_; }
  int64_t background_size() const { return size() - foreground_size_; }

  /// v(level), in [0, 1].
  double value(uint8_t level) const { return values_[level]; }
  const std::array<double, kLevels>& values() const { return values_; }
  /// The straight line v(level) = (level - lowest_level()) * value_step(), up to rounding.
  double lowest_level() const { return lowest_level_; }
  double value_step() const { return value_step_; }

  /// How many foreground (background) pixels of the truth have each prediction level.
  const Histogram& foreground_levels() const { return foreground_levels_; }
  const Histogram& background_levels() const { return background_levels_; }

  double mean() const { return mean_; }
  const Curve& curve() const { return counts_.curve(); }
  const Confusion& adaptive() const { return counts_.adaptive(); }
  const Confusion& binary() const { return counts_.binary(); }

 private:
  void count_levels() {
    // Two tables take turns, so that equal neighbours do not wait for each other's increment.
    std::array<std::array<int64_t, 2 * kLevels>, 2> tables{};
    for (int64_t pixel = 0; pixel < pair_.size(); ++pixel) {
      ++tables[pixel & 1][pair_.prediction[pixel] + (pair_.is_foreground(pixel) ? kLevels : 0)];
    }
    for (int level = 0; level < kLevels; ++level) {
      background_levels_[level] = tables[0][level] + tables[1][level];
      foreground_levels_[level] = tables[0][level + kLevels] + tables[1][level + kLevels];
      foreground_size_ += foreground_levels_[level];
    }
  }

  void set_values() {
    int lowest = 0;
    int highest = kLevels - 1;
    const auto is_absent = [this](int level) { return foreground_levels_[level] + background_levels_[level] == 0; };
    while (is_absent(lowest)) {
      ++lowest;
    }
    while (is_absent(highest)) {
      --highest;
    }
    const double minimum = lowest / 255.0;
    const double maximum = highest / 255.0;
    for (int level = lowest; level <= highest; ++level) {
      const double value = level / 255.0;
      values_[level] = lowest == highest ? value : (value - minimum) / (maximum - minimum);
    }
    lowest_level_ = lowest == highest ? 0 : lowest;
    value_step_ = 1.0 / (lowest == highest ? 255 : highest - lowest);
  }

  MapPair pair_;
  std::array<double, kLevels> values_{};
  double lowest_level_ = 0;
  double value_step_ = 0;
  Histogram foreground_levels_{};
  Histogram background_levels_{};
  int64_t foreground_size_ = 0;
  double mean_ = 0;
  ThresholdCounts counts_;
};

}  // namespace moecod::metric
