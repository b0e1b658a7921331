#pragma once

#include <cstdint>

#include <moecod/metric/image_statistics.hpp>

namespace moecod::metric {

/// Mean absolute error: mean |v - g| over the pixels of one image, v the prediction, g the truth (0 or 1).
///
/// Range [0, 1], 0 is best. Source: Perazzi et al., Saliency Filters, CVPR 2012; figures as in PySODMetrics.
struct Mae {
  static constexpr const char* name = "mae";

  static double of(const ImageStatistics& image) {
    double sum = 0;
    for (int level = 0; level < ImageStatistics::kLevels; ++level) {
      const double value = image.value(static_cast<uint8_t>(level));
      sum += static_cast<double>(image.background_levels()[level]) * value +
             static_cast<double>(image.foreground_levels()[level]) * (1 - value);
    }
    return sum / static_cast<double>(image.size());
  }
};

}  // namespace moecod::metric
