#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <moecod/metric/accumulator.hpp>
#include <moecod/metric/pairwise_sum.hpp>
#include <moecod/metric/targets.hpp>
#include <moecod/metric/threshold_counts.hpp>

namespace moecod::metric {

/// Threshold metrics in which a small object weighs as much as a large one: each object is scored by itself, on the
/// image with prediction and truth set to 0 outside the object's box (see targets.hpp; v is stretched before). A truth
/// without objects is scored as one. With M the metric at one of the 256 thresholds:
///   si_NAME_max             mean over the images of the mean over their objects of max M
///   si_NAME_mean            the same of mean M
///   si_NAME_adaptive        the same of M at min(2 mean, 1), the mean that of the whole image outside the box too
///   si_NAME_binary          the same of M at v > 0.5
///   si_NAME_overall_max     the curve over the thresholds averaged over all objects of the data set; its maximum
///   si_NAME_overall_mean    and its mean
///   si_NAME_overall_binary  M of the counts at v > 0.5 summed over all objects
/// (si_NAME_max takes the maximum per object, where NAME_max takes it once, of the mean curve.)
///
/// The reference fails on a full truth; here it is one object with the image for a box.
/// Source: Li et al., Size-invariance Matters, ICML 2024; PySODMetrics, SizeInvarianceFmeasureV2, its curves reduced as
/// in its own tests.
template <threshold_metric... Metrics>
class SizeInvariant {
 public:
  void add(const ImageStatistics& image) {
    std::vector<Box> boxes = targets(image.pair());
    if (boxes.empty()) {
      boxes.push_back({0, 0, image.pair().height, image.pair().width});
    }
    std::vector<ThresholdCounts> objects;
    for (const Box& box : boxes) {
      objects.push_back(counts_in(image, box));
      binary_ += objects.back().binary();
    }
    (std::get<Sums<Metrics>>(sums_).add(objects), ...);
  }

  void merge(const SizeInvariant& other) {
    binary_ += other.binary_;
    (std::get<Sums<Metrics>>(sums_).merge(std::get<Sums<Metrics>>(other.sums_)), ...);
  }

  void results(std::vector<NamedValue>& out) const {
    (std::get<Sums<Metrics>>(sums_).results(out, binary_), ...);
  }

 private:
  template <class Metric>
  class Sums {
   public:
    void add(const std::vector<ThresholdCounts>& objects) {
      std::array<double, 4> of_image{};
      for (const ThresholdCounts& object : objects) {
        double highest = Metric::of(object.curve()[0]);
        double total = 0;
        for (int index = 0; index < kLevels; ++index) {
          const double value = Metric::of(object.curve()[index]);
          curve_[index].add(value);
          highest = std::max(highest, value);
          total += value;
        }
        of_image[0] += highest;
        of_image[1] += total / kLevels;
        of_image[2] += Metric::of(object.adaptive());
        of_image[3] += Metric::of(object.binary());
      }
      for (std::size_t regime = 0; regime < of_image.size(); ++regime) {
        means_[regime].add(of_image[regime] / static_cast<double>(objects.size()));
      }
    }

    void merge(const Sums& other) {
      for (std::size_t regime = 0; regime < means_.size(); ++regime) {
        means_[regime].merge(other.means_[regime]);
      }
      for (int index = 0; index < kLevels; ++index) {
        curve_[index].merge(other.curve_[index]);
      }
    }

    void results(std::vector<NamedValue>& out, const Confusion& binary) const {
      const std::string name = std::string("si_") + Metric::name;
      constexpr std::array<const char*, 4> kRegimes{"_max", "_mean", "_adaptive", "_binary"};
      for (std::size_t regime = 0; regime < kRegimes.size(); ++regime) {
        out.push_back({name + kRegimes[regime], means_[regime].value()});
      }
      double highest = curve_[0].value();
      double total = 0;
      for (const ExactMean& mean : curve_) {
        highest = std::max(highest, mean.value());
        total += mean.value();
      }
      out.push_back({name + "_overall_max", highest});
      out.push_back({name + "_overall_mean", total / kLevels});
      out.push_back({name + "_overall_binary", Metric::of(binary)});
    }

   private:
    std::array<ExactMean, 4> means_;  // max, mean, adaptive, binary
    std::array<ExactMean, kLevels> curve_;
  };

  /// Counts over the whole image, of maps that are 0 outside the box.
  static ThresholdCounts counts_in(const ImageStatistics& image, const Box& box) {
    const MapPair& pair = image.pair();
    Histogram foreground{};
    Histogram background{};
    for (int64_t row = box.top; row < box.bottom; ++row) {
      for (int64_t pixel = row * pair.width + box.left; pixel < row * pair.width + box.right; ++pixel) {
        ++(pair.is_foreground(pixel) ? foreground : background)[pair.prediction[pixel]];
      }
    }
    // A last bin of value 0 holds what lies outside. Level 0 has that value, be it in the prediction or not.
    background[0] += pair.size() - box.size();
    const auto value = [&](int64_t pixel) {
      const int64_t column = pixel % pair.width;
      const int64_t row = pixel / pair.width;
      const bool inside = column >= box.left && column < box.right && row >= box.top && row < box.bottom;
      return inside ? image.value(pair.prediction[pixel]) : 0.0;
    };
    const double sum = pairwise_sum_within(box.top * pair.width, box.bottom * pair.width, pair.size(), value);
    return {foreground, background, image.values(), sum / static_cast<double>(pair.size())};
  }

  std::tuple<Sums<Metrics>...> sums_;
  Confusion binary_;
};

}  // namespace moecod::metric
