#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <moecod/metric/confusion.hpp>
#include <moecod/metric/map_pair.hpp>
#include <moecod/metric/pairwise_sum.hpp>

#ifdef __FAST_MATH__
#error "moecod/metric must be compiled without -ffast-math: the metrics are defined down to the order of rounding"
#endif

namespace moecod::metric {

/// 2^-52, the epsilon of every formula in this folder.
inline constexpr double kEpsilon = 0x1p-52;

/// What the metrics of one image share: values of the levels, histograms, mean, and the counts at every threshold.
///
/// Level p of the prediction has the value v(p) = p / 255, and (v - min) / (max - min) if the image is not constant.
///   curve()[i]    counts of trunc(255 v) >= 255 - i, for i = 0 ... 255
///   adaptive()    counts of v >= min(2 mean(v), 1)
///   binary()      counts of v > 0.5
/// All are float64 in the operation order of PySODMetrics. No product feeds a sum on the way to a bin or a threshold,
/// so there is nothing for the compiler to contract (GCC contracts under -mfma or -march=native); reordering under
/// -ffast-math is refused above.
///
/// One pass for the histograms and one for the mean; everything else works on 256 levels. Keeps the view, so the
/// maps must outlive it. Errors: std::invalid_argument from check(MapPair).
class ImageStatistics {
 public:
  static constexpr int kLevels = 256;
  using Histogram = std::array<int64_t, kLevels>;
  using Curve = std::array<Confusion, kLevels>;

  explicit ImageStatistics(const MapPair& pair) : pair_(pair) {
    check(pair);
    count_levels();
    set_values();
    mean_ = pairwise_sum(pair_.size(), [this](int64_t pixel) { return values_[pair_.prediction[pixel]]; }) /
            static_cast<double>(pair_.size());
    set_curve();
    const double threshold = std::min(2 * mean_, 1.0);
    adaptive_ = counts_where([&](double value) { return value >= threshold; });
    binary_ = counts_where([](double value) { return value > 0.5; });
  }

  const MapPair& pair() const { return pair_; }
  int64_t size() const { return pair_.size(); }
  int64_t foreground_size() const { return foreground_size_; }
  int64_t background_size() const { return size() - foreground_size_; }

  /// v(level), in [0, 1].
  double value(uint8_t level) const { return values_[level]; }
  /// The straight line v(level) = (level - lowest_level()) * value_step(), up to rounding.
  double lowest_level() const { return lowest_level_; }
  double value_step() const { return value_step_; }

  /// How many foreground (background) pixels of the truth have each prediction level.
  const Histogram& foreground_levels() const { return foreground_levels_; }
  const Histogram& background_levels() const { return background_levels_; }

  double mean() const { return mean_; }
  const Curve& curve() const { return curve_; }
  const Confusion& adaptive() const { return adaptive_; }
  const Confusion& binary() const { return binary_; }

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

  void set_curve() {
    Histogram foreground{};
    Histogram background{};
    for (int level = 0; level < kLevels; ++level) {
      const auto bin = static_cast<uint8_t>(values_[level] * 255);
      foreground[bin] += foreground_levels_[level];
      background[bin] += background_levels_[level];
    }
    int64_t true_positive = 0;
    int64_t false_positive = 0;
    for (int index = 0; index < kLevels; ++index) {
      true_positive += foreground[kLevels - 1 - index];
      false_positive += background[kLevels - 1 - index];
      curve_[index] = counts(true_positive, false_positive);
    }
  }

  template <class Predicate>
  Confusion counts_where(const Predicate& predicate) const {
    int64_t true_positive = 0;
    int64_t false_positive = 0;
    for (int level = 0; level < kLevels; ++level) {
      if (predicate(values_[level])) {
        true_positive += foreground_levels_[level];
        false_positive += background_levels_[level];
      }
    }
    return counts(true_positive, false_positive);
  }

  Confusion counts(int64_t true_positive, int64_t false_positive) const {
    return {true_positive, false_positive, background_size() - false_positive, foreground_size_ - true_positive};
  }

  MapPair pair_;
  std::array<double, kLevels> values_{};
  double lowest_level_ = 0;
  double value_step_ = 0;
  Histogram foreground_levels_{};
  Histogram background_levels_{};
  int64_t foreground_size_ = 0;
  double mean_ = 0;
  Curve curve_{};
  Confusion adaptive_;
  Confusion binary_;
};

}  // namespace moecod::metric
