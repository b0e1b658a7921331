#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "moecod/data/canvas.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/shape.hpp"

namespace moecod::data {

/// Draws something with an outline that is no object: a leaf-like piece of the scene itself, moved but neither
/// turned nor scaled nor shaded, or a mere shadow, or a mere contour.
inline void distract(Canvas& canvas, const Photograph& photograph, const Window& scene, Random& random) {
  const auto side = static_cast<float>(canvas.width);
  const float area = side * side * random.uniform(0.012F, 0.07F);
  const Shape shape(random.chance(0.5F) ? Shape::Kind::Leaf : Shape::Kind::Lobes, random);
  const float edge = 0.7F * side / 96.0F;
  const Placed placed = rasterize(shape, random.uniform(0.0F, side), random.uniform(0.0F, side), area,
                                  random.uniform(0.0F, 6.2831853F), canvas.height, canvas.width, 3.0F, random);
  const int64_t kind = random.below(3);
  const float strength = random.sign() * random.uniform(0.1F, 0.22F);
  const auto home = scene.source_of(placed.y, placed.x);
  const float moved = 2.5F * placed.radius * scene.step();
  const Window piece(placed.y, placed.x, home[0] + random.uniform(-moved, moved),
                     home[1] + random.uniform(-moved, moved), scene.step(), 0.0F, false);
  for (int64_t i = 0; i < placed.distance.height; ++i) {
    for (int64_t j = 0; j < placed.distance.width; ++j) {
      const float d = placed.distance.at(i, j);
      if (d > 3.0F * edge) continue;
      const int64_t y = placed.top + i;
      const int64_t x = placed.left + j;
      float* out = canvas.at(y, x);
      if (kind == 0) {
        float rgb[3];
        piece.read(photograph, static_cast<float>(y), static_cast<float>(x), rgb);
        const float alpha = smooth_step(-d, edge);
        for (int c = 0; c < 3; ++c) out[c] += alpha * (rgb[c] - out[c]);
      } else {
        const float amount = kind == 1 ? smooth_step(-d, 2.0F * edge)
                                       : 1.5F * std::max(0.0F, 1.0F - std::fabs(d) / (2.0F * edge));
        for (int c = 0; c < 3; ++c) out[c] *= 1.0F + strength * amount;
      }
    }
  }
}

}  // namespace moecod::data
