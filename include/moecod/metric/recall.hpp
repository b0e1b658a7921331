#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Recall, also called sensitivity or true positive rate: TP / (TP + FN); 0 if the truth is empty.
///
/// Range [0, 1], 1 is best. Source: PySODMetrics, RecallHandler (TPRHandler and SensitivityHandler are the same).
struct Recall {
  static constexpr const char* name = "recall";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.true_positive), static_cast<double>(c.foreground()));
  }
};

}  // namespace moecod::metric
