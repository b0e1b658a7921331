#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "moecod/data/random.hpp"
#include "moecod/io/image.hpp"

/// Changes of an RGB picture's colours, in place. A factor of 1 and a shift of 0 change nothing.
namespace moecod::data {

namespace detail {

inline uint8_t to_byte(float value) { return static_cast<uint8_t>(std::clamp(value + 0.5F, 0.0F, 255.0F)); }

}  // namespace detail

inline void adjust_brightness(Image& image, float factor) {
  std::array<uint8_t, 256> table{};
  for (std::size_t v = 0; v < 256; ++v) table[v] = detail::to_byte(factor * static_cast<float>(v));
  for (uint8_t& value : image.pixels) value = table[value];
}

/// About the mean of the grey picture.
inline void adjust_contrast(Image& image, float factor) {
  int64_t sum = 0;
  const Image gray = to_gray(image);
  for (const uint8_t value : gray.pixels) sum += value;
  const float mean = static_cast<float>(sum) / static_cast<float>(gray.pixels.size());
  std::array<uint8_t, 256> table{};
  for (std::size_t v = 0; v < 256; ++v) table[v] = detail::to_byte(mean + factor * (static_cast<float>(v) - mean));
  for (uint8_t& value : image.pixels) value = table[value];
}

/// Away from (factor > 1) or towards (factor < 1) each pixel's grey.
inline void adjust_saturation(Image& image, float factor) {
  const Image gray = to_gray(image);
  for (std::size_t i = 0; i < gray.pixels.size(); ++i) {
    const auto g = static_cast<float>(gray.pixels[i]);
    for (std::size_t c = 0; c < 3; ++c) {
      uint8_t& value = image.pixels[3 * i + c];
      value = detail::to_byte(g + factor * (static_cast<float>(value) - g));
    }
  }
}

/// Away from or towards the picture smoothed by 1/13 [1 1 1; 1 5 1; 1 1 1]; the border stays.
inline void adjust_sharpness(Image& image, float factor) {
  if (image.height < 3 || image.width < 3) return;
  const Image source = image;
  const int64_t line = source.width * source.channels;
  for (int64_t y = 1; y + 1 < source.height; ++y) {
    const uint8_t* p = source.row(y);
    uint8_t* out = image.row(y);
    for (int64_t i = source.channels; i < line - source.channels; ++i) {
      int sum = 4 * p[i];
      for (const int64_t row : {-line, int64_t{0}, line}) {
        for (const int64_t column : {-source.channels, int64_t{0}, source.channels}) sum += p[i + row + column];
      }
      const float smooth = static_cast<float>(sum) / 13.0F;
      out[i] = detail::to_byte(smooth + factor * (static_cast<float>(p[i]) - smooth));
    }
  }
}

/// Shifts in HSV: hue in degrees of the colour circle, saturation and value of 255.
inline void shift_hsv(Image& image, float hue, float saturation, float value) {
  const float turn = std::fmod(std::fmod(hue / 60.0F, 6.0F) + 6.0F, 6.0F);
  for (std::size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
    const float r = image.pixels[i];
    const float g = image.pixels[i + 1];
    const float b = image.pixels[i + 2];
    const float high = std::max({r, g, b});
    const float range = high - std::min({r, g, b});
    float h = 0.0F;  // in sixths of the circle
    if (range > 0.0F) {
      h = high == r ? (g - b) / range : high == g ? 2.0F + (b - r) / range : 4.0F + (r - g) / range;
    }
    h += turn;  // -1 .. 11
    if (h >= 6.0F) h -= 6.0F;
    if (h < 0.0F) h += 6.0F;
    // A grey pixel has no hue to saturate.
    const float s = range > 0.0F ? std::clamp(range / high + saturation / 255.0F, 0.0F, 1.0F) : 0.0F;
    const float v = std::clamp(high + value, 0.0F, 255.0F);
    for (std::size_t c = 0; c < 3; ++c) {
      float k = 5.0F - 2.0F * static_cast<float>(c) + h;  // 0 .. 11
      if (k >= 6.0F) k -= 6.0F;
      const float part = std::clamp(std::min(k, 4.0F - k), 0.0F, 1.0F);
      image.pixels[i + c] = detail::to_byte(v - v * s * part);
    }
  }
}

/// What the colours of a pixel are multiplied by: a row for each of red, green and blue.
using ColorMatrix = std::array<std::array<float, 3>, 3>;
inline constexpr ColorMatrix identity_colors{{{1.0F, 0.0F, 0.0F}, {0.0F, 1.0F, 0.0F}, {0.0F, 0.0F, 1.0F}}};

/// (1 - share) P + share R: R a random matrix with rows that sum to 1, P the identity or, half of the time, a random
/// order of the channels.
inline ColorMatrix random_colors(float share, Random& random) {
  std::array<std::size_t, 3> order{0, 1, 2};
  if (random.chance(0.5F)) {
    std::swap(order[0], order[static_cast<std::size_t>(random.below(3))]);
    std::swap(order[1], order[1 + static_cast<std::size_t>(random.below(2))]);
  }
  ColorMatrix matrix{};
  for (std::size_t row = 0; row < 3; ++row) {
    float sum = 0.0F;
    for (float& weight : matrix[row]) sum += weight = random.uniform(0.05F, 1.0F);
    for (float& weight : matrix[row]) weight *= share / sum;
    matrix[row][order[row]] += 1.0F - share;
  }
  return matrix;
}

inline void mix_channels(Image& image, const ColorMatrix& matrix) {
  for (std::size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
    const std::array<float, 3> in{static_cast<float>(image.pixels[i]), static_cast<float>(image.pixels[i + 1]),
                                  static_cast<float>(image.pixels[i + 2])};
    for (std::size_t row = 0; row < 3; ++row) {
      image.pixels[i + row] =
          detail::to_byte(matrix[row][0] * in[0] + matrix[row][1] * in[1] + matrix[row][2] * in[2]);
    }
  }
}

}  // namespace moecod::data
