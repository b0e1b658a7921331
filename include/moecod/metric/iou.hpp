#pragma once

#include <moecod/metric/confusion.hpp>

namespace moecod::metric {

/// Intersection over union: TP / (TP + FP + FN); 0 if truth and prediction are both empty.
///
/// Range [0, 1], 1 is best. The IoU of one image at 0.5 is `Iou::of(ImageStatistics(pair).binary())`.
/// Source: PySODMetrics, IOUHandler.
struct Iou {
  static constexpr const char* name = "iou";
  static constexpr bool reports_binary = true;

  static double of(const Confusion& c) {
    return ratio_or_zero(static_cast<double>(c.true_positive),
                         static_cast<double>(c.true_positive + c.false_positive + c.false_negative));
  }
};

}  // namespace moecod::metric
