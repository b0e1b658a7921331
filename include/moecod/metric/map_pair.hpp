#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace moecod::metric {

/// A predicted map and its ground truth: what every metric of this folder reads. A view; it owns nothing.
///
/// Both maps are [height, width] uint8, rows contiguous, and outlive the view. A truth pixel is foreground if it is
/// above 128. A prediction level p stands for p / 255, stretched to [0, 1] per image (see image_statistics.hpp).
struct MapPair {
  const uint8_t* prediction = nullptr;
  const uint8_t* truth = nullptr;
  int64_t height = 0;
  int64_t width = 0;

  int64_t size() const { return height * width; }
  bool is_foreground(int64_t pixel) const { return truth[pixel] > 128; }
};

/// Throws std::invalid_argument if a map is missing, empty, or has more than 2^31 - 1 pixels.
inline void check(const MapPair& pair) {
  if (pair.prediction == nullptr || pair.truth == nullptr) {
    throw std::invalid_argument(std::string("MapPair.") + (pair.truth == nullptr ? "truth" : "prediction") +
                                ": expected a map, got a null pointer");
  }
  const bool positive = pair.height > 0 && pair.width > 0;
  if (!positive || pair.height > std::numeric_limits<int32_t>::max() / pair.width) {
    throw std::invalid_argument("MapPair: expected 1 to 2^31 - 1 pixels, got height " + std::to_string(pair.height) +
                                ", width " + std::to_string(pair.width));
  }
}

}  // namespace moecod::metric
