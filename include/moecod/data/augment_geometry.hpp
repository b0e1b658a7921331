#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "moecod/io/image.hpp"

/// Movements of a picture. Applied with the same arguments to an image and its mask they keep the two aligned.
namespace moecod::data {

/// Left to right.
inline Image mirrored(const Image& image) {
  Image out(image.height, image.width, image.channels);
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      std::copy_n(image.row(y) + (image.width - 1 - x) * image.channels, image.channels,
                  out.row(y) + x * image.channels);
    }
  }
  return out;
}

/// Top to bottom.
inline Image flipped(const Image& image) {
  Image out(image.height, image.width, image.channels);
  for (int64_t y = 0; y < image.height; ++y) {
    std::copy_n(image.row(image.height - 1 - y), image.width * image.channels, out.row(y));
  }
  return out;
}

/// By 90 degrees, counter-clockwise; [H, W] becomes [W, H].
inline Image quarter_turned(const Image& image) {
  Image out(image.width, image.height, image.channels);
  for (int64_t y = 0; y < out.height; ++y) {
    for (int64_t x = 0; x < out.width; ++x) {
      std::copy_n(image.row(x) + (image.width - 1 - y) * image.channels, image.channels,
                  out.row(y) + x * image.channels);
    }
  }
  return out;
}

/// The middle part of at most the image's size.
inline Image centre_cropped(const Image& image, int64_t height, int64_t width) {
  Image out(height, width, image.channels);
  const int64_t top = (image.height - height) / 2;
  const int64_t left = (image.width - width) / 2;
  for (int64_t y = 0; y < height; ++y) {
    std::copy_n(image.row(top + y) + left * image.channels, width * image.channels, out.row(y));
  }
  return out;
}

/// About the centre, counter-clockwise, size kept, read bilinearly. Outside the picture is its border (`replicate`) or
/// black.
inline Image rotated(const Image& image, float degrees, bool replicate) {
  Image out(image.height, image.width, image.channels);
  const float radians = degrees * 0.017453293F;
  const float sine = std::sin(radians);
  const float cosine = std::cos(radians);
  const float centre_y = 0.5F * static_cast<float>(image.height - 1);
  const float centre_x = 0.5F * static_cast<float>(image.width - 1);
  const auto last_y = static_cast<float>(image.height - 1);
  const auto last_x = static_cast<float>(image.width - 1);
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      const float dy = static_cast<float>(y) - centre_y;
      const float dx = static_cast<float>(x) - centre_x;
      float v = centre_y + cosine * dy + sine * dx;
      float u = centre_x + cosine * dx - sine * dy;
      const bool outside = v < -0.5F || u < -0.5F || v > last_y + 0.5F || u > last_x + 0.5F;
      if (outside && !replicate) continue;
      v = std::clamp(v, 0.0F, last_y);
      u = std::clamp(u, 0.0F, last_x);
      const auto top = static_cast<int64_t>(v);
      const auto left = static_cast<int64_t>(u);
      const int64_t bottom = std::min(top + 1, image.height - 1);
      const int64_t right = std::min(left + 1, image.width - 1);
      const float below = v - static_cast<float>(top);
      const float beside = u - static_cast<float>(left);
      for (int64_t c = 0; c < image.channels; ++c) {
        const float upper = (1.0F - beside) * image.at(top, left, c) + beside * image.at(top, right, c);
        const float lower = (1.0F - beside) * image.at(bottom, left, c) + beside * image.at(bottom, right, c);
        out.at(y, x, c) = static_cast<uint8_t>((1.0F - below) * upper + below * lower + 0.5F);
      }
    }
  }
  return out;
}

}  // namespace moecod::data
