#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/mae.hpp>
#include <moecod/metric/targets.hpp>

namespace moecod::metric {

/// Size-invariant mean absolute error: the mean of the objects' errors and, with less weight, the background's.
///
///     (sum_k mae(box k) + r mae(rest)) / (K + r),    r = pixels in no box / pixels in some box,
/// over the boxes of the K objects (see targets.hpp) and the pixels in none of them. Without objects: the plain MAE.
///
/// Range [0, 1], 0 is best. If no pixel is outside the boxes, the reference gives NaN or, for a full truth, fails; here
/// r is 0 and the rest adds nothing.
/// Source: Li et al., Size-invariance Matters, ICML 2024; PySODMetrics, SizeInvarianceMAE.
struct SiMae {
  static constexpr const char* name = "si_mae";

  static double of(const ImageStatistics& image) {
    const MapPair& pair = image.pair();
    const std::vector<Box> boxes = targets(pair);
    if (boxes.empty()) {
      return Mae::of(image);
    }
    const auto error = [&](int64_t pixel) {
      return std::abs(image.value(pair.prediction[pixel]) - (pair.is_foreground(pixel) ? 1.0 : 0.0));
    };
    std::vector<bool> is_rest(static_cast<std::size_t>(pair.size()), true);
    double sum = 0;
    for (const Box& box : boxes) {
      double in_box = 0;
      for (int64_t row = box.top; row < box.bottom; ++row) {
        for (int64_t pixel = row * pair.width + box.left; pixel < row * pair.width + box.right; ++pixel) {
          in_box += error(pixel);
          is_rest[pixel] = false;
        }
      }
      sum += in_box / static_cast<double>(box.size());
    }
    double in_rest = 0;
    int64_t rest = 0;
    for (int64_t pixel = 0; pixel < pair.size(); ++pixel) {
      if (is_rest[pixel]) {
        in_rest += error(pixel);
        ++rest;
      }
    }
    const double ratio = static_cast<double>(rest) / static_cast<double>(pair.size() - rest);
    if (rest > 0) {
      sum += ratio * in_rest / static_cast<double>(rest);
    }
    return sum / (static_cast<double>(boxes.size()) + ratio);
  }
};

}  // namespace moecod::metric
