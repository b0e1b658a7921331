#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// False positive rate: FP / (FP + TN); 0 if the truth is full.
///
/// Range [0, 1], 0 is best. It is an error, so fpr_max is the figure of the worst threshold (1, at threshold 0).
/// Source: PySODMetrics, FPRHandler.
struct Fpr {
  static constexpr const char* name = "fpr";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.false_positive), static_cast<double>(c.background()));
  }
};

}  // namespace moecod::metric
