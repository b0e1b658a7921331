#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "moecod/data/noise.hpp"
#include "moecod/data/random.hpp"

namespace moecod::data {

/// A random organic outline: a smooth union of tapered capsules (a body along a curved spine with a head and limbs,
/// a bunch of lobes, or wings mirrored about an axis), which `rasterize` places and roughens with noise.
///
/// The distance to a union is joined smoothly: smin(a, b) = min(a, b) - max(k - |a - b|, 0)^2 / (4 k).
class Shape {
 public:
  enum class Kind { Animal, Lobes, Wings, Leaf };

  Shape(Kind kind, Random& random) {
    switch (kind) {
      case Kind::Animal: animal(random); break;
      case Kind::Lobes: lobes(random); break;
      case Kind::Wings: wings(random); break;
      case Kind::Leaf: leaf(random); break;
    }
    measure();
  }

  /// The scale, in pixels a unit, that makes the area about `pixels`.
  float scale_for(float pixels) const { return std::sqrt(pixels / area_); }
  /// Radius of a circle about the shape's centre that holds it, in units.
  float reach() const { return reach_; }

  /// The signed distance, in units, of a point from the outline; negative inside, near enough to exact close to it.
  float distance(float y, float x) const {
    float total = 1e9F;
    for (const Capsule& c : capsules_) {
      const float py = y - c.y0;
      const float px = x - c.x0;
      const float h = std::clamp((py * c.dy + px * c.dx) * c.inverse, 0.0F, 1.0F);
      const float ey = py - h * c.dy;
      const float ex = px - h * c.dx;
      const float d = std::sqrt(ey * ey + ex * ex) - (c.r0 + h * (c.r1 - c.r0));
      const float gap = std::max(kSmooth - std::fabs(total - d), 0.0F);
      total = std::min(total, d) - gap * gap / (4.0F * kSmooth);
    }
    return total;
  }

  float centre_y() const { return centre_y_; }
  float centre_x() const { return centre_x_; }

 private:
  static constexpr float kSmooth = 0.12F;

  struct Capsule {
    float y0, x0, dy, dx, inverse, r0, r1;
  };

  void add(float y0, float x0, float r0, float y1, float x1, float r1) {
    const float dy = y1 - y0;
    const float dx = x1 - x0;
    capsules_.push_back({y0, x0, dy, dx, 1.0F / std::max(dy * dy + dx * dx, 1e-6F), r0, r1});
  }

  /// A chain of capsules that starts at (y, x) and bends by `bend` radians a segment.
  void limb(float y, float x, float angle, float bend, float length, float r0, float r1, int segments) {
    for (int i = 0; i < segments; ++i) {
      const float step = length / static_cast<float>(segments);
      const float y1 = y + step * std::sin(angle);
      const float x1 = x + step * std::cos(angle);
      const float from = r0 + (r1 - r0) * static_cast<float>(i) / static_cast<float>(segments);
      const float to = r0 + (r1 - r0) * static_cast<float>(i + 1) / static_cast<float>(segments);
      add(y, x, from, y1, x1, to);
      y = y1;
      x = x1;
      angle += bend;
    }
  }

  void animal(Random& random) {
    const float thick = random.uniform(0.18F, 0.36F);
    const int joints = 3 + static_cast<int>(random.below(3));
    float angle = random.uniform(-0.4F, 0.4F);
    const float bend = random.uniform(-0.5F, 0.5F);
    float y = 0.0F;
    float x = -0.8F;
    float radius = thick * random.uniform(0.5F, 0.9F);
    limb(y, x, angle + 3.1415927F, random.uniform(-0.6F, 0.6F), random.uniform(0.0F, 0.9F), radius * 0.6F, 0.03F, 3);
    const float side = random.uniform(0.9F, 1.6F);
    const bool legs = random.chance(0.75F);
    for (int i = 0; i < joints; ++i) {
      const float step = 1.6F / static_cast<float>(joints);
      const float y1 = y + step * std::sin(angle);
      const float x1 = x + step * std::cos(angle);
      const float next = thick * random.uniform(0.75F, 1.15F);
      add(y, x, radius, y1, x1, next);
      if (legs && i != 1) {
        for (const float direction : {-1.0F, 1.0F}) {
          if (random.chance(0.2F)) continue;
          const float lift = direction * (side + random.uniform(-0.3F, 0.3F));
          limb(y1, x1, angle + lift, direction * random.uniform(-0.9F, 0.5F), random.uniform(0.45F, 0.95F),
               thick * random.uniform(0.3F, 0.5F), thick * 0.18F, 3);
        }
      }
      y = y1;
      x = x1;
      radius = next;
      angle += bend;
    }
    const float head = thick * random.uniform(0.8F, 1.2F);
    add(y, x, radius * 0.9F, y + 0.3F * std::sin(angle), x + 0.3F * std::cos(angle), head);
  }

  void lobes(Random& random) {
    const int count = 3 + static_cast<int>(random.below(4));
    add(0.0F, 0.0F, random.uniform(0.35F, 0.55F), 0.0F, 0.0F, 0.4F);
    for (int i = 0; i < count; ++i) {
      const float angle = 6.2831853F * (static_cast<float>(i) + random.uniform(-0.35F, 0.35F)) /
                          static_cast<float>(count);
      const float out = random.uniform(0.35F, 0.75F);
      add(0.0F, 0.0F, 0.25F, out * std::sin(angle), out * std::cos(angle), random.uniform(0.12F, 0.38F));
    }
  }

  void wings(Random& random) {
    add(-0.5F, 0.0F, 0.1F, 0.55F, 0.0F, 0.07F);
    const float upper = random.uniform(0.3F, 0.45F);
    const float lower = random.uniform(0.2F, 0.38F);
    const float spread = random.uniform(0.35F, 0.7F);
    for (const float direction : {-1.0F, 1.0F}) {
      add(-0.2F, direction * 0.1F, 0.12F, -0.45F, direction * (0.25F + spread), upper);
      add(0.15F, direction * 0.1F, 0.1F, 0.4F, direction * (0.15F + 0.8F * spread), lower);
    }
  }

  void leaf(Random& random) {
    const float length = random.uniform(0.5F, 0.9F);
    const float bend = random.uniform(-0.25F, 0.25F);
    add(0.0F, -length, 0.05F, bend, 0.0F, random.uniform(0.2F, 0.4F));
    add(bend, 0.0F, random.uniform(0.2F, 0.4F), 0.0F, length, 0.05F);
  }

  /// Centre, area and reach, from a coarse grid.
  void measure() {
    constexpr int kGrid = 56;
    constexpr float kSide = 2.6F;
    constexpr float kCell = 2.0F * kSide / kGrid;
    float sum_y = 0.0F;
    float sum_x = 0.0F;
    float count = 0.0F;
    std::vector<float> inside;
    for (int i = 0; i < kGrid; ++i) {
      for (int j = 0; j < kGrid; ++j) {
        const float y = -kSide + (static_cast<float>(i) + 0.5F) * kCell;
        const float x = -kSide + (static_cast<float>(j) + 0.5F) * kCell;
        if (distance(y, x) >= 0.0F) continue;
        sum_y += y;
        sum_x += x;
        count += 1.0F;
        inside.push_back(y);
        inside.push_back(x);
      }
    }
    centre_y_ = sum_y / count;
    centre_x_ = sum_x / count;
    area_ = count * kCell * kCell;
    for (std::size_t i = 0; i < inside.size(); i += 2) {
      const float dy = inside[i] - centre_y_;
      const float dx = inside[i + 1] - centre_x_;
      reach_ = std::max(reach_, std::sqrt(dy * dy + dx * dx) + kCell);
    }
  }

  std::vector<Capsule> capsules_;
  float centre_y_ = 0.0F;
  float centre_x_ = 0.0F;
  float area_ = 1.0F;
  float reach_ = 0.0F;
};

/// A shape in the picture: the part of the picture that it and its surroundings cover, and for each pixel of the
/// part the signed distance from the outline in pixels, negative inside.
struct Placed {
  int64_t top = 0;
  int64_t left = 0;
  float y = 0.0F;       // the centre in the picture, pixels
  float x = 0.0F;
  float radius = 0.0F;  // of a circle of the same area, pixels
  Field distance;
};

/// Places a shape, turned by `angle` and stretched to about `area` pixels, in a picture of [height, width]. The
/// outline is roughened by noise of 6 % of the radius; `margin` pixels around it are covered too.
inline Placed rasterize(const Shape& shape, float y, float x, float area, float angle, int64_t height, int64_t width,
                        float margin, Random& random) {
  Placed out;
  out.y = y;
  out.x = x;
  out.radius = std::sqrt(area / 3.1415927F);
  const float scale = shape.scale_for(area);
  const float reach = shape.reach() * scale * 1.08F + margin + 1.0F;
  out.top = std::clamp<int64_t>(static_cast<int64_t>(std::floor(y - reach)), 0, height - 1);
  out.left = std::clamp<int64_t>(static_cast<int64_t>(std::floor(x - reach)), 0, width - 1);
  const int64_t bottom = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(y + reach)) + 1, out.top + 1, height);
  const int64_t right = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(x + reach)) + 1, out.left + 1, width);
  const float cells = 2.0F + 3.0F * random.uniform();
  Field rough = fractal_noise(bottom - out.top, right - out.left, cells, cells, 2, random);
  const float sine = std::sin(angle) / scale;
  const float cosine = std::cos(angle) / scale;
  for (int64_t i = 0; i < rough.height; ++i) {
    for (int64_t j = 0; j < rough.width; ++j) {
      const float dy = static_cast<float>(out.top + i) - y;
      const float dx = static_cast<float>(out.left + j) - x;
      const float d = shape.distance(shape.centre_y() + cosine * dy + sine * dx,
                                     shape.centre_x() + cosine * dx - sine * dy);
      rough.at(i, j) = d * scale + 0.06F * out.radius * rough.at(i, j);
    }
  }
  out.distance = std::move(rough);
  return out;
}

}  // namespace moecod::data
