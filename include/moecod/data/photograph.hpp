#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/io/image.hpp"

namespace moecod::data {

/// A picture that textures are taken from: an image pyramid, each level half the size of the one below it. Copies
/// share the pixels.
class Photograph {
 public:
  /// Errors: std::invalid_argument unless the image has 3 channels and at least 16 pixels a side.
  Photograph(std::string name, Image image) : name_(std::move(name)) {
    if (image.channels != 3 || std::min(image.height, image.width) < 16) {
      throw std::invalid_argument("Photograph: expected an RGB image of at least 16 x 16, got " +
                                  std::to_string(image.height) + " x " + std::to_string(image.width) + " x " +
                                  std::to_string(image.channels) + " for " + name_);
    }
    auto levels = std::make_shared<std::vector<Image>>();
    levels->push_back(std::move(image));
    while (std::min(levels->back().height, levels->back().width) >= 32) {
      const Image& last = levels->back();
      levels->push_back(resize(last, last.height / 2, last.width / 2));
    }
    levels_ = std::move(levels);
  }

  const std::string& name() const { return name_; }
  int64_t height() const { return levels_->front().height; }
  int64_t width() const { return levels_->front().width; }
  const Image& image() const { return levels_->front(); }

  /// The level to read when neighbouring samples lie `step` pixels of the full picture apart.
  int level_for(float step) const {
    int level = 0;
    while (step >= 2.0F && level + 1 < static_cast<int>(levels_->size())) {
      step *= 0.5F;
      ++level;
    }
    return level;
  }

  /// The colour at (y, x), in pixels of the full picture, read bilinearly from `level`; mirrored beyond the border.
  void read(float y, float x, int level, float* rgb) const {
    const Image& image = (*levels_)[static_cast<std::size_t>(level)];
    const float shrink_y = static_cast<float>(image.height) / static_cast<float>(height());
    const float shrink_x = static_cast<float>(image.width) / static_cast<float>(width());
    const float v = mirrored((y + 0.5F) * shrink_y - 0.5F, static_cast<float>(image.height - 1));
    const float u = mirrored((x + 0.5F) * shrink_x - 0.5F, static_cast<float>(image.width - 1));
    const auto top = std::min(static_cast<int64_t>(v), image.height - 2);
    const auto left = std::min(static_cast<int64_t>(u), image.width - 2);
    const float below = v - static_cast<float>(top);
    const float right = u - static_cast<float>(left);
    const uint8_t* p = image.row(top) + 3 * left;
    const uint8_t* q = p + 3 * image.width;
    for (int c = 0; c < 3; ++c) {
      const float upper = static_cast<float>(p[c]) + right * static_cast<float>(p[c + 3] - p[c]);
      const float lower = static_cast<float>(q[c]) + right * static_cast<float>(q[c + 3] - q[c]);
      rgb[c] = upper + below * (lower - upper);
    }
  }

 private:
  static float mirrored(float position, float last) {
    position = std::fabs(position);
    if (position <= last) return position;
    position = std::fmod(position, 2.0F * last);
    return position > last ? 2.0F * last - position : position;
  }

  std::string name_;
  std::shared_ptr<const std::vector<Image>> levels_;
};

}  // namespace moecod::data
