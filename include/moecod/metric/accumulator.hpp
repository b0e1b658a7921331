#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <vector>

#include <moecod/metric/confusion.hpp>
#include <moecod/metric/exact_mean.hpp>
#include <moecod/metric/image_statistics.hpp>

namespace moecod::metric {

/// One figure of a data set: its key in reports and JSON, and its value.
struct NamedValue {
  std::string name;
  double value = 0;
};

/// A metric of the whole map: one number per image. Members: name, of(ImageStatistics).
template <class M>
concept map_metric = requires(const ImageStatistics& image) {
  { M::name } -> std::convertible_to<std::string>;
  { M::of(image) } -> std::same_as<double>;
};

/// A metric of a binary map: a function of four counts. Members: name, reports_binary, of(Confusion).
template <class M>
concept threshold_metric = requires(const Confusion& counts) {
  { M::name } -> std::convertible_to<std::string>;
  { M::reports_binary } -> std::convertible_to<bool>;
  { M::of(counts) } -> std::same_as<double>;
};

/// What an evaluator is made of. add() takes one image, merge() another accumulator of the same kind; results()
/// appends the figures. Law: the bits of the results do not depend on the order of adding and merging.
template <class A>
concept accumulator =
    std::default_initializable<A> &&
    requires(A a, const A& other, const ImageStatistics& image, std::vector<NamedValue>& out) {
      a.add(image);
      a.merge(other);
      other.results(out);
    };

/// Accumulator of a map metric: the mean over images, under the metric's name.
template <map_metric Metric>
class Average {
 public:
  void add(const ImageStatistics& image) { mean_.add(Metric::of(image)); }
  void merge(const Average& other) { mean_.merge(other.mean_); }
  void results(std::vector<NamedValue>& out) const { out.push_back({Metric::name, mean_.value()}); }

 private:
  ExactMean mean_;
};

/// Accumulator of a threshold metric, in the regimes of PySODMetrics:
///   NAME_max, NAME_mean    the curve over 256 thresholds is averaged over the images, then its maximum and mean taken
///   NAME_adaptive          mean over images at the threshold min(2 mean, 1)
///   NAME_binary            mean over images at v > 0.5, if Metric::reports_binary
template <threshold_metric Metric>
class Thresholded {
 public:
  void add(const ImageStatistics& image) {
    for (int index = 0; index < ImageStatistics::kLevels; ++index) {
      curve_[index].add(Metric::of(image.curve()[index]));
    }
    adaptive_.add(Metric::of(image.adaptive()));
    binary_.add(Metric::of(image.binary()));
  }

  void merge(const Thresholded& other) {
    for (int index = 0; index < ImageStatistics::kLevels; ++index) {
      curve_[index].merge(other.curve_[index]);
    }
    adaptive_.merge(other.adaptive_);
    binary_.merge(other.binary_);
  }

  /// The curve averaged over the images; entry i is for the threshold 255 - i.
  std::array<double, ImageStatistics::kLevels> curve() const {
    std::array<double, ImageStatistics::kLevels> values{};
    std::transform(curve_.begin(), curve_.end(), values.begin(), [](const ExactMean& mean) { return mean.value(); });
    return values;
  }

  void results(std::vector<NamedValue>& out) const {
    const auto values = curve();
    double sum = 0;
    for (const double value : values) {
      sum += value;
    }
    const std::string name = Metric::name;
    out.push_back({name + "_max", *std::max_element(values.begin(), values.end())});
    out.push_back({name + "_mean", sum / static_cast<double>(values.size())});
    out.push_back({name + "_adaptive", adaptive_.value()});
    if constexpr (Metric::reports_binary) {
      out.push_back({name + "_binary", binary_.value()});
    }
  }

 private:
  std::array<ExactMean, ImageStatistics::kLevels> curve_;
  ExactMean adaptive_;
  ExactMean binary_;
};

/// Accumulator of NAME_binary alone, for a threshold metric whose other regimes stand elsewhere.
template <threshold_metric Metric>
class Binary {
 public:
  void add(const ImageStatistics& image) { mean_.add(Metric::of(image.binary())); }
  void merge(const Binary& other) { mean_.merge(other.mean_); }
  void results(std::vector<NamedValue>& out) const {
    out.push_back({std::string(Metric::name) + "_binary", mean_.value()});
  }

 private:
  ExactMean mean_;
};

/// Accumulator of NAME_overall for each of the metrics: the counts at v > 0.5 are summed over the images, and the
/// metric taken of the sums. So a large image weighs more than a small one, and one without foreground is no special
/// case.
/// Source: PySODMetrics, handlers with sample_based = False.
template <threshold_metric... Metrics>
class Overall {
 public:
  void add(const ImageStatistics& image) { counts_ += image.binary(); }
  void merge(const Overall& other) { counts_ += other.counts_; }
  void results(std::vector<NamedValue>& out) const {
    (out.push_back({std::string(Metrics::name) + "_overall", Metrics::of(counts_)}), ...);
  }

 private:
  Confusion counts_;
};

}  // namespace moecod::metric
