#pragma once

#include <moecod/metric/confusion.hpp>
#include <moecod/metric/overall_accuracy.hpp>

namespace moecod::metric {

/// Kappa: (oa - chance) / (1 - chance), how far the overall accuracy is beyond that of chance,
///     chance = ((TP + FP)(TP + FN) + (TN + FN)(TN + TP)) / N^2;
/// 0 where chance is 1 (both maps empty, or both full). At most 1, which is best.
///
/// This is the reference's chance. Cohen's has TN + FP, the background of the truth, for the last factor, and gives
/// other figures: do not compare them with kappa from elsewhere.
/// Source: PySODMetrics, KappaHandler; after Cohen, A Coefficient of Agreement for Nominal Scales, 1960.
struct Kappa {
  static constexpr const char* name = "kappa";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    const auto size = static_cast<double>(c.size());
    const auto agreements = static_cast<double>(c.predicted_foreground() * c.foreground() +
                                                c.predicted_background() * (c.true_negative + c.true_positive));
    const double chance = ratio_or_zero(agreements, size * size);
    return ratio_or_zero(OverallAccuracy::of(c) - chance, 1 - chance);
  }
};

}  // namespace moecod::metric
