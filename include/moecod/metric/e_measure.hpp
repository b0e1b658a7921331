#pragma once

#include <cstdint>

#include <moecod/metric/confusion.hpp>
#include <moecod/metric/image_statistics.hpp>

namespace moecod::metric {

/// Enhanced-alignment measure of a binary prediction.
///
/// With a and b the prediction and the truth (0 or 1) minus their means over the image, a pixel is aligned by
///     align = 2 a b / (a^2 + b^2 + eps),    E = sum (align + 1)^2 / 4 / (N - 1 + eps).
/// a and b take two values each, so the sum has four terms, one per cell of the confusion table.
/// Truth empty: predicted background / (N - 1 + eps). Truth full: predicted foreground / (N - 1 + eps).
///
/// 1 is best up to the factor N / (N - 1). An image of a single pixel has N - 1 = 0, so a right answer there is 2^52:
/// the reference's definition, kept. Papers differ in which of max, mean and adaptive they report: always name it.
/// Source: Fan et al., Enhanced-alignment Measure, IJCAI 2018; PySODMetrics, Emeasure.
struct EMeasure {
  static constexpr const char* name = "emeasure";
  static constexpr bool reports_binary = false;

  static double of(const Confusion& c) {
    const auto size = static_cast<double>(c.size());
    double sum = 0;
    if (c.foreground() == 0) {
      sum = static_cast<double>(c.predicted_background());
    } else if (c.background() == 0) {
      sum = static_cast<double>(c.predicted_foreground());
    } else {
      const double prediction_mean = static_cast<double>(c.predicted_foreground()) / size;
      const double truth_mean = static_cast<double>(c.foreground()) / size;
      sum = cell(c.true_positive, 1 - prediction_mean, 1 - truth_mean) +
            cell(c.false_positive, 1 - prediction_mean, -truth_mean) +
            cell(c.false_negative, -prediction_mean, 1 - truth_mean) +
            cell(c.true_negative, -prediction_mean, -truth_mean);
    }
    return sum / (size - 1 + kEpsilon);
  }

 private:
  static double cell(int64_t count, double a, double b) {
    const double align = 2 * a * b / (a * a + b * b + kEpsilon);
    return static_cast<double>(count) * (align + 1) * (align + 1) / 4;
  }
};

}  // namespace moecod::metric
