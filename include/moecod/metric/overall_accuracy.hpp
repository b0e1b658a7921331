#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Overall accuracy: (TP + TN) / N, the share of pixels that are right.
///
/// Range [0, 1], 1 is best. Source: PySODMetrics, OverallAccuracyHandler.
struct OverallAccuracy {
  static constexpr const char* name = "oa";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.true_positive + c.true_negative), static_cast<double>(c.size()));
  }
};

}  // namespace moecod::metric
