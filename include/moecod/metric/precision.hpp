#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Precision: TP / (TP + FP); 0 if nothing is predicted.
///
/// Range [0, 1], 1 is best. Source: PySODMetrics, PrecisionHandler.
struct Precision {
  static constexpr const char* name = "precision";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.true_positive), static_cast<double>(c.predicted_foreground()));
  }
};

}  // namespace moecod::metric
