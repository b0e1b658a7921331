#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// F-measure: (1 + b) P R / (b P + R), b = beta^2 = 0.3, P = TP / (TP + FP), R = TP / (TP + FN).
///
/// A ratio with denominator 0 is 0. Range [0, 1], 1 is best.
/// Source: Achanta et al., Frequency-tuned Salient Region Detection, CVPR 2009; PySODMetrics, FmeasureHandler.
struct FMeasure {
  static constexpr const char* name = "fmeasure";
  static constexpr bool reports_binary = false;
  static constexpr double kBetaSquared = 0.3;

  static double of(const Confusion& c) {
    const auto hits = static_cast<double>(c.true_positive);
    const double precision = ratio_or_zero(hits, static_cast<double>(c.predicted_foreground()));
    const double recall = ratio_or_zero(hits, static_cast<double>(c.foreground()));
    return ratio_or_zero((kBetaSquared + 1) * precision * recall, kBetaSquared * precision + recall);
  }
};

}  // namespace moecod::metric
