#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Balanced error rate: 1 - (TPR + TNR) / 2, where the rate of a class that the truth lacks is 0.
///
/// Range [0, 1], 0 is best (0.5 if the truth is empty or full). It is an error, so ber_max is the figure of the worst
/// threshold, as in the reference. Source: PySODMetrics, BERHandler.
struct Ber {
  static constexpr const char* name = "ber";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    const double true_positive_rate =
        ratio_or_zero(static_cast<double>(c.true_positive), static_cast<double>(c.foreground()));
    const double true_negative_rate =
        ratio_or_zero(static_cast<double>(c.true_negative), static_cast<double>(c.background()));
    return 1 - 0.5 * (true_positive_rate + true_negative_rate);
  }
};

}  // namespace moecod::metric
