#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "moecod/data/canvas.hpp"
#include "moecod/data/noise.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/recipe.hpp"
#include "moecod/data/shape.hpp"

namespace moecod::data {

/// The colours that an object wears: a window of a photograph, moved towards its surroundings,
///     v' = mean_t + m (mean_s - mean_t) + (v - mean_t) (1 + m (dev_s / dev_t - 1)),
/// t the texture under the object, s the surroundings, m = recipe.match; then, if the mean brightness differs from the
/// surroundings by less than recipe.contrast, moved away to that difference.
///
/// Returns RGB for each pixel of `placed.distance`, interleaved; those beyond the blended boundary are left at 0.
inline std::vector<float> dress(const Photograph& photograph, const Window& window, const Placed& placed,
                                const Moments& around, const Recipe& recipe) {
  const int64_t rows = placed.distance.height;
  const int64_t columns = placed.distance.width;
  std::vector<float> colors(static_cast<std::size_t>(rows * columns * 3));
  Moments worn;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float d = placed.distance.at(i, j);
      if (d > 2.0F * recipe.edge) continue;
      float* rgb = colors.data() + 3 * (i * columns + j);
      window.read(photograph, static_cast<float>(placed.top + i), static_cast<float>(placed.left + j), rgb);
      if (d < 0.0F) worn.add(rgb);
    }
  }
  std::array<float, 3> gain{};
  std::array<float, 3> mean{};
  float step = 0.0F;
  for (std::size_t c = 0; c < 3; ++c) {
    const float ratio = std::clamp(around.deviation(c) / std::max(worn.deviation(c), 2.0F), 0.4F, 2.5F);
    gain[c] = 1.0F + recipe.match * (ratio - 1.0F);
    mean[c] = worn.mean(c) + recipe.match * (around.mean(c) - worn.mean(c));
    step += (mean[c] - around.mean(c)) / 3.0F;
  }
  if (std::fabs(step) < recipe.contrast) {
    // Away from black and white, where there is no room; else on the side where the texture is already.
    const float middle = (around.mean(0) + around.mean(1) + around.mean(2)) / 3.0F;
    const bool brighter = middle < recipe.contrast + 20.0F || (middle <= 200.0F && step >= 0.0F);
    for (float& value : mean) value += (brighter ? recipe.contrast : -recipe.contrast) - step;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      if (placed.distance.at(i, j) > 2.0F * recipe.edge) continue;
      float* rgb = colors.data() + 3 * (i * columns + j);
      for (std::size_t c = 0; c < 3; ++c) rgb[c] = mean[c] + gain[c] * (rgb[c] - worn.mean(c));
    }
  }
  return colors;
}

/// Blends a dressed object into the picture: shaded as a rounded body lit from a random side, with a contact shadow
/// on the other side; or, `mixed`, without a shadow and with a boundary frayed by noise.
inline void blend(Canvas& canvas, const Placed& placed, const std::vector<float>& colors, const Recipe& recipe,
                  bool mixed, Random& random) {
  const int64_t rows = placed.distance.height;
  const int64_t columns = placed.distance.width;
  const float light = random.uniform(0.0F, 6.2831853F);
  const float light_y = std::sin(light) / placed.radius;
  const float light_x = std::cos(light) / placed.radius;
  const Field frays = mixed ? fractal_noise(rows, columns, 6.0F, 6.0F, 3, random) : Field();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float d = placed.distance.at(i, j);
      const int64_t y = placed.top + i;
      const int64_t x = placed.left + j;
      const float lit = std::clamp((static_cast<float>(y) - placed.y) * light_y +
                                   (static_cast<float>(x) - placed.x) * light_x, -1.3F, 1.3F);
      float* out = canvas.at(y, x);
      if (d > 0.0F && !mixed) {
        const float near = std::max(0.0F, 1.0F - d / std::max(2.0F, 0.25F * placed.radius));
        const float shadow = 0.9F * recipe.shading * std::max(0.0F, 0.3F - lit) * near;
        for (int c = 0; c < 3; ++c) out[c] *= 1.0F - shadow;
      }
      if (d > 2.0F * recipe.edge) continue;
      const float frayed = mixed ? d + 0.6F * recipe.edge * frays.at(i, j) : d;
      const float alpha = recipe.opacity * smooth_step(-frayed, recipe.edge);
      const float depth = std::clamp(-d / (0.6F * placed.radius), 0.0F, 1.0F);
      const float shade = 1.0F + recipe.shading * (0.8F * lit + 0.6F * (depth - 0.5F));
      const float* rgb = colors.data() + 3 * (i * columns + j);
      for (int c = 0; c < 3; ++c) out[c] += alpha * (rgb[c] * shade - out[c]);
    }
  }
}

}  // namespace moecod::data
