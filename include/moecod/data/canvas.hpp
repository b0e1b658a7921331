#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "moecod/data/photograph.hpp"
#include "moecod/data/shape.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

/// A picture in the making: float RGB, 0..255, interleaved.
struct Canvas {
  int64_t height;
  int64_t width;
  std::vector<float> rgb;

  Canvas(int64_t height_, int64_t width_)
      : height(height_), width(width_), rgb(static_cast<std::size_t>(height_ * width_ * 3)) {}
  float* at(int64_t y, int64_t x) { return rgb.data() + 3 * (y * width + x); }
  const float* at(int64_t y, int64_t x) const { return rgb.data() + 3 * (y * width + x); }
};

/// A similarity between the canvas and a photograph: where each canvas pixel takes its colour from,
///     source = anchor_source + step * rotation * mirror * (pixel - anchor).
class Window {
 public:
  Window(float anchor_y, float anchor_x, float source_y, float source_x, float step, float angle, bool mirror)
      : anchor_y_(anchor_y), anchor_x_(anchor_x), source_y_(source_y), source_x_(source_x), step_(step),
        sine_(step * std::sin(angle)), cosine_(step * std::cos(angle)), mirror_(mirror ? -1.0F : 1.0F) {}

  void read(const Photograph& photograph, float y, float x, float* rgb) const {
    const float dy = y - anchor_y_;
    const float dx = (x - anchor_x_) * mirror_;
    photograph.read(source_y_ + cosine_ * dy + sine_ * dx, source_x_ + cosine_ * dx - sine_ * dy,
                    photograph.level_for(step_), rgb);
  }

  float step() const { return step_; }
  /// Where a canvas point lies in the photograph.
  std::array<float, 2> source_of(float y, float x) const {
    const float dy = y - anchor_y_;
    const float dx = (x - anchor_x_) * mirror_;
    return {source_y_ + cosine_ * dy + sine_ * dx, source_x_ + cosine_ * dx - sine_ * dy};
  }

 private:
  float anchor_y_, anchor_x_, source_y_, source_x_, step_, sine_, cosine_, mirror_;
};

/// Mean and standard deviation of each colour channel over some pixels.
class Moments {
 public:
  void add(const float* rgb) {
    for (std::size_t c = 0; c < 3; ++c) {
      sum_[c] += rgb[c];
      squares_[c] += rgb[c] * rgb[c];
    }
    ++count_;
  }
  int64_t count() const { return count_; }
  float mean(std::size_t c) const { return count_ > 0 ? sum_[c] / static_cast<float>(count_) : 128.0F; }
  float deviation(std::size_t c) const {
    if (count_ == 0) return 0.0F;
    return std::sqrt(std::max(0.0F, squares_[c] / static_cast<float>(count_) - mean(c) * mean(c)));
  }
  /// How unlike two textures' colours are, in grey levels a channel.
  float distance(const Moments& other) const {
    float total = 0.0F;
    for (std::size_t c = 0; c < 3; ++c) {
      total += std::fabs(mean(c) - other.mean(c)) + 0.7F * std::fabs(deviation(c) - other.deviation(c));
    }
    return total / 3.0F;
  }

 private:
  std::array<float, 3> sum_{};
  std::array<float, 3> squares_{};
  int64_t count_ = 0;
};

/// The canvas between the outline of a shape and `ring` pixels outside it.
inline Moments surroundings(const Canvas& canvas, const Placed& placed, float ring) {
  Moments out;
  for (int64_t i = 0; i < placed.distance.height; ++i) {
    for (int64_t j = 0; j < placed.distance.width; ++j) {
      const float d = placed.distance.at(i, j);
      if (d > 0.0F && d < ring) out.add(canvas.at(placed.top + i, placed.left + j));
    }
  }
  return out;
}

/// The cubic step from 0 at -width to 1 at +width.
inline float smooth_step(float x, float width) {
  const float t = std::clamp(0.5F + 0.5F * x / width, 0.0F, 1.0F);
  return t * t * (3.0F - 2.0F * t);
}

/// The canvas rounded to 8 bits.
inline Image to_image(const Canvas& canvas) {
  Image image(canvas.height, canvas.width, 3);
  for (std::size_t i = 0; i < canvas.rgb.size(); ++i) {
    image.pixels[i] = static_cast<uint8_t>(std::clamp(canvas.rgb[i] + 0.5F, 0.0F, 255.0F));
  }
  return image;
}

}  // namespace moecod::data
