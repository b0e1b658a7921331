#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Dice coefficient: 2 TP / (2 TP + FP + FN); 0 if truth and prediction are both empty.
///
/// Range [0, 1], 1 is best. Source: PySODMetrics, DICEHandler.
struct Dice {
  static constexpr const char* name = "dice";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(2.0 * static_cast<double>(c.true_positive),
                         static_cast<double>(2 * c.true_positive + c.false_positive + c.false_negative));
  }
};

}  // namespace moecod::metric
