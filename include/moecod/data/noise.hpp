#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "moecod/data/random.hpp"

namespace moecod::data {

/// A map of one float a pixel.
struct Field {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<float> values;

  Field() = default;
  Field(int64_t height_, int64_t width_, float value = 0.0F)
      : height(height_), width(width_), values(static_cast<std::size_t>(height_ * width_), value) {}
  float& at(int64_t y, int64_t x) { return values[static_cast<std::size_t>(y * width + x)]; }
  float at(int64_t y, int64_t x) const { return values[static_cast<std::size_t>(y * width + x)]; }
};

/// Fractal value noise: octaves of random lattices, each twice as fine and half as strong as the one before, joined
/// by cubic Hermite interpolation; about within +-1, mean about 0.
///
/// `cells_y`, `cells_x`: lattice cells of the first octave along each side; unequal ones make streaks.
inline Field fractal_noise(int64_t height, int64_t width, float cells_y, float cells_x, int octaves, Random& random) {
  Field out(height, width);
  std::vector<float> lattice;
  std::vector<int64_t> column(static_cast<std::size_t>(width));
  std::vector<float> right(static_cast<std::size_t>(width));
  const auto ease = [](float t) { return t * t * (3.0F - 2.0F * t); };
  float amplitude = 0.6F;
  for (int octave = 0; octave < octaves; ++octave) {
    const int64_t stride = static_cast<int64_t>(cells_x) + 3;
    const int64_t rows = static_cast<int64_t>(cells_y) + 3;
    lattice.resize(static_cast<std::size_t>(stride * rows));
    for (float& value : lattice) value = random.uniform(-1.0F, 1.0F);
    const float shift_y = random.uniform();
    const float shift_x = random.uniform();
    for (int64_t x = 0; x < width; ++x) {
      const float position = shift_x + cells_x * static_cast<float>(x) / static_cast<float>(width);
      column[static_cast<std::size_t>(x)] = static_cast<int64_t>(position);
      right[static_cast<std::size_t>(x)] = ease(position - std::floor(position));
    }
    for (int64_t y = 0; y < height; ++y) {
      const float position = shift_y + cells_y * static_cast<float>(y) / static_cast<float>(height);
      const float below = ease(position - std::floor(position));
      const float* top = lattice.data() + static_cast<int64_t>(position) * stride;
      float* target = &out.at(y, 0);
      for (int64_t x = 0; x < width; ++x) {
        const float* p = top + column[static_cast<std::size_t>(x)];
        const float t = right[static_cast<std::size_t>(x)];
        const float upper = p[0] + (p[1] - p[0]) * t;
        const float lower = p[stride] + (p[stride + 1] - p[stride]) * t;
        target[x] += amplitude * (upper + (lower - upper) * below);
      }
    }
    amplitude *= 0.5F;
    cells_y *= 2.0F;
    cells_x *= 2.0F;
  }
  return out;
}

/// Cellular noise (Worley 1996): with one random point a lattice cell, the distances f1 to the nearest and f2 to the
/// second nearest point, in cells. `inside` is f1, `border` is f2 - f1, which is 0 on the seams between cells.
struct Cells {
  Field inside;
  Field border;
};

inline Cells cellular_noise(int64_t height, int64_t width, float cells, Random& random) {
  Cells out{Field(height, width), Field(height, width)};
  const float scale = cells / static_cast<float>(std::max(height, width));
  const auto stride = static_cast<int64_t>(scale * static_cast<float>(width)) + 3;
  const auto rows = static_cast<int64_t>(scale * static_cast<float>(height)) + 3;
  std::vector<float> points(static_cast<std::size_t>(stride * rows * 2));
  for (float& value : points) value = random.uniform(0.1F, 0.9F);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const float v = 1.0F + scale * static_cast<float>(y);
      const float u = 1.0F + scale * static_cast<float>(x);
      const auto row = static_cast<int64_t>(v);
      const auto column = static_cast<int64_t>(u);
      float nearest = 9.0F;
      float second = 9.0F;
      for (int64_t i = row - 1; i <= std::min(row + 1, rows - 1); ++i) {
        for (int64_t j = column - 1; j <= std::min(column + 1, stride - 1); ++j) {
          const float* p = points.data() + 2 * (i * stride + j);
          const float dy = static_cast<float>(i) + p[0] - v;
          const float dx = static_cast<float>(j) + p[1] - u;
          const float distance = dy * dy + dx * dx;
          if (distance < nearest) {
            second = nearest;
            nearest = distance;
          } else {
            second = std::min(second, distance);
          }
        }
      }
      out.inside.at(y, x) = std::sqrt(nearest);
      out.border.at(y, x) = std::sqrt(second) - std::sqrt(nearest);
    }
  }
  return out;
}

}  // namespace moecod::data
