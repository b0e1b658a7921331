#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Specificity, also called true negative rate: TN / (TN + FP); 0 if the truth is full.
///
/// Range [0, 1], 1 is best. Source: PySODMetrics, SpecificityHandler (TNRHandler is the same).
struct Specificity {
  static constexpr const char* name = "specificity";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.true_negative), static_cast<double>(c.background()));
  }
};

}  // namespace moecod::metric
