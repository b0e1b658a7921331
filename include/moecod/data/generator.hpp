#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/canvas.hpp"
#include "moecod/data/noise.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/data/shape.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

/// A generated picture, and what it was made of.
struct Camouflage {
  Image image;             // [size, size, 3]
  Image mask;              // [size, size, 1], 0 or 255
  Regime regime;
  std::size_t photograph;  // index of the photograph
};

/// Generates pictures of hidden objects from photographs.
///
/// A crop of a photograph, at a random place and scale, is the scene. The object has a random organic outline and
/// wears a texture from elsewhere in the same photograph, turned, scaled and perhaps mirrored; its colours are moved
/// towards those around it,
///     v' = mean_t + m (mean_s - mean_t) + (v - mean_t) (1 + m (dev_s / dev_t - 1)),
/// t the texture, s the surroundings, m the amount of matching; then it is shaded as a rounded body and blended in.
/// What is left to find it by is the texture's direction and scale, the shading, a faint contact shadow, and at least
/// a small step in brightness. `difficulty` moves all of them together: at 0 the object stands out, at 1 nothing but
/// the texture's direction gives it away.
///
/// The four regimes differ as class Regime says; they take turns by a low-discrepancy sequence, so any run of indices
/// holds them in nearly the asked proportions.
///
/// A picture is a function of (photographs, options, index) alone; a const Generator may be used by many threads.
/// Errors: std::invalid_argument for no photographs, a size below 32, a difficulty outside 0..1, regime weights that
/// are negative or all zero.
class Generator {
 public:
  struct Options {
    int64_t size = 96;                            // side of the picture, pixels, >= 32
    double difficulty = 0.3;                      // 0 easy .. 1 hidden
    std::array<double, 4> regimes{1, 1, 1, 1};    // shares of cluttered, clear, multi-scale, ambiguous pictures
    uint64_t seed = 0;
  };

  Generator(std::vector<Photograph> photographs, Options options)
      : photographs_(std::move(photographs)), options_(options) {
    const auto refuse = [](const std::string& what) { throw std::invalid_argument("Generator: " + what); };
    if (photographs_.empty()) refuse("expected at least one photograph, got none");
    if (options_.size < 32) refuse("size must be at least 32, got " + std::to_string(options_.size));
    if (!(options_.difficulty >= 0.0 && options_.difficulty <= 1.0)) {
      refuse("difficulty must be in 0..1, got " + std::to_string(options_.difficulty));
    }
    double total = 0.0;
    for (const double weight : options_.regimes) {
      if (!(weight >= 0.0)) refuse("regime weights must not be negative, got " + std::to_string(weight));
      total += weight;
    }
    if (!(total > 0.0)) refuse("regime weights must not all be zero");
  }

  const Options& options() const { return options_; }
  const std::vector<Photograph>& photographs() const { return photographs_; }

  Regime regime(uint64_t index) const {
    const uint64_t start = Random{options_.seed, 0x2E61}.bits();
    const double u = static_cast<double>((start + index * 0x9E3779B97F4A7C15ULL) >> 11) * 0x1p-53;
    double rest = u * (options_.regimes[0] + options_.regimes[1] + options_.regimes[2] + options_.regimes[3]);
    std::size_t last = 0;
    for (std::size_t r = 0; r < options_.regimes.size(); ++r) {
      if (options_.regimes[r] == 0.0) continue;
      last = r;
      if (rest < options_.regimes[r]) break;
      rest -= options_.regimes[r];
    }
    return static_cast<Regime>(last);
  }

  Camouflage operator()(uint64_t index) const {
    Random random{options_.seed, index, 0xCA30};
    const Regime which = regime(index);
    const auto chosen = static_cast<std::size_t>(random.below(static_cast<int64_t>(photographs_.size())));
    const Photograph& photograph = photographs_[chosen];
    const Window window = crop(photograph, random);
    Canvas canvas(options_.size, options_.size);
    for (int64_t y = 0; y < canvas.height; ++y) {
      for (int64_t x = 0; x < canvas.width; ++x) {
        window.read(photograph, static_cast<float>(y), static_cast<float>(x), canvas.at(y, x));
      }
    }
    if (which == Regime::Cluttered) {
      const int64_t count = 4 + random.below(5);
      for (int64_t i = 0; i < count; ++i) distract(canvas, photograph, window, random);
    }
    Image mask(options_.size, options_.size, 1);
    for (const float area : areas(which, random)) hide(canvas, mask, photograph, window, which, area, random);
    const float grain = random.uniform(0.5F, 2.5F);
    for (float& value : canvas.rgb) value += grain * random.bell();
    return {to_image(canvas), std::move(mask), which, chosen};
  }

 private:
  /// How strongly the object of a regime is hidden, and by what it can be found.
  struct Recipe {
    float match;     // colours moved towards the surroundings, 0..1
    float contrast;  // least difference of mean brightness, grey levels
    float shading;   // amplitude of the body's shading, 0..1
    float edge;      // half width of the blended boundary, pixels
    float opacity;   // of the object's inside, 0..1
  };

  Recipe recipe(Regime regime, float radius) const {
    const auto hidden = static_cast<float>(options_.difficulty);
    const float shown = 1.0F - hidden;
    const float sharp = 0.7F * static_cast<float>(options_.size) / 96.0F;
    switch (regime) {
      case Regime::Cluttered: return {hidden, 26.0F * shown, 0.26F * shown, sharp, 1.0F};
      case Regime::Clear: return {0.4F * hidden, 55.0F * (1.0F - 0.6F * hidden), 0.3F * shown, sharp, 1.0F};
      case Regime::MultiScale: return {hidden, 26.0F * shown, 0.26F * shown, sharp, 1.0F};
      default: return {hidden, 34.0F * shown, 0.3F * shown, sharp + 0.22F * radius, 0.9F};
    }
  }

  float side() const { return static_cast<float>(options_.size); }

  /// The scene: a square of the photograph from 30 % of its shorter side (or the picture's own size) up to all of it.
  Window crop(const Photograph& photograph, Random& random) const {
    const auto shortest = static_cast<float>(std::min(photograph.height(), photograph.width()));
    const float least = std::min(shortest, std::max(0.3F * shortest, side()));
    const float length = least * std::exp(random.uniform() * std::log(shortest / least));
    const float y = random.uniform(0.5F * length, static_cast<float>(photograph.height()) - 0.5F * length);
    const float x = random.uniform(0.5F * length, static_cast<float>(photograph.width()) - 0.5F * length);
    return {0.5F * side(), 0.5F * side(), y, x, length / side(), 0.0F, random.chance(0.5F)};
  }

  /// The objects' areas in pixels.
  std::vector<float> areas(Regime regime, Random& random) const {
    const float all = side() * side();
    const auto between = [&](float low, float high) {
      return all * low * std::exp(random.uniform() * std::log(high / low));
    };
    if (regime != Regime::MultiScale) return {between(0.05F, 0.25F)};
    if (random.chance(0.3F)) return {between(0.25F, 0.45F)};
    if (random.chance(0.3F)) return {between(0.006F, 0.03F)};
    std::vector<float> out{between(0.06F, 0.2F)};
    const int64_t more = 1 + random.below(3);
    for (int64_t i = 0; i < more; ++i) out.push_back(between(0.006F, 0.06F));
    return out;
  }

  static Shape object_shape(Random& random) {
    const float u = random.uniform();
    return {u < 0.5F   ? Shape::Kind::Animal
            : u < 0.7F ? Shape::Kind::Lobes
            : u < 0.9F ? Shape::Kind::Wings
                       : Shape::Kind::Leaf,
            random};
  }

  /// A place for the object where most of it is in the picture and free of the objects already there.
  Placed place(const Image& mask, float area, float margin, Random& random) const {
    constexpr int kTries = 8;
    for (int attempt = 0;; ++attempt) {
      const Shape shape = object_shape(random);
      const float inset = std::min(0.42F * side(), 0.75F * shape.reach() * shape.scale_for(area));
      const float y = random.uniform(inset, side() - inset);
      const float x = random.uniform(inset, side() - inset);
      Placed placed = rasterize(shape, y, x, area, random.uniform(0.0F, 6.2831853F), mask.height, mask.width, margin,
                                random);
      int64_t covered = 0;
      int64_t overlap = 0;
      for (int64_t i = 0; i < placed.distance.height; ++i) {
        for (int64_t j = 0; j < placed.distance.width; ++j) {
          if (placed.distance.at(i, j) >= 0.0F) continue;
          ++covered;
          overlap += mask.at(placed.top + i, placed.left + j) != 0;
        }
      }
      const bool good = static_cast<float>(covered) > 0.7F * area && 10 * overlap <= covered;
      if (good || attempt == kTries) return placed;
    }
  }

  /// A window of the photograph to dress the object with: of a few random ones the most fitting, or in a clear
  /// picture the least.
  Window texture(const Photograph& photograph, const Window& scene, const Placed& placed, const Moments& around,
                 Regime regime, Random& random) const {
    constexpr int kCandidates = 4;
    const auto home = scene.source_of(placed.y, placed.x);
    Window best = scene;
    float best_score = 0.0F;
    for (int n = 0; n < kCandidates; ++n) {
      const float zoom = random.chance(0.5F) ? random.uniform(0.6F, 0.85F) : random.uniform(1.2F, 1.7F);
      const float step = scene.step() * zoom;
      const float reach = std::min(placed.radius * step, 0.45F * static_cast<float>(photograph.height()));
      float y = 0.0F;
      float x = 0.0F;
      for (int attempt = 0; attempt < 4; ++attempt) {
        y = random.uniform(reach, static_cast<float>(photograph.height()) - reach);
        x = random.uniform(reach, static_cast<float>(photograph.width()) - reach);
        if (std::fabs(y - home[0]) + std::fabs(x - home[1]) > 2.0F * reach) break;
      }
      const float angle = random.sign() * random.uniform(0.6F, 2.5F);
      const Window candidate(placed.y, placed.x, y, x, step, angle, random.chance(0.5F));
      Moments colors;
      for (int i = -3; i <= 3; ++i) {
        for (int j = -3; j <= 3; ++j) {
          float rgb[3];
          candidate.read(photograph, placed.y + placed.radius * static_cast<float>(i) / 3.5F,
                         placed.x + placed.radius * static_cast<float>(j) / 3.5F, rgb);
          colors.add(rgb);
        }
      }
      const float unlike = colors.distance(around);
      const float score = regime == Regime::Clear ? -unlike : unlike;
      if (n == 0 || score < best_score) {
        best = candidate;
        best_score = score;
      }
    }
    return best;
  }

  /// Draws one object and marks it in the mask.
  void hide(Canvas& canvas, Image& mask, const Photograph& photograph, const Window& scene, Regime regime, float area,
            Random& random) const {
    const float radius = std::sqrt(area / 3.1415927F);
    const Recipe recipe = this->recipe(regime, radius);
    const float ring = std::max(3.0F, 0.4F * radius);
    const Placed placed = place(mask, area, std::max(ring, 2.0F * recipe.edge), random);
    const Moments around = surroundings(canvas, placed, ring);
    const Window window = texture(photograph, scene, placed, around, regime, random);

    const int64_t rows = placed.distance.height;
    const int64_t columns = placed.distance.width;
    std::vector<float> dress(static_cast<std::size_t>(rows * columns * 3));
    Moments worn;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const float d = placed.distance.at(i, j);
        if (d > 2.0F * recipe.edge) continue;
        float* rgb = dress.data() + 3 * (i * columns + j);
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
      const float middle = (around.mean(0) + around.mean(1) + around.mean(2)) / 3.0F;
      const float sign = middle < recipe.contrast + 20.0F ? 1.0F : middle > 200.0F ? -1.0F : step < 0.0F ? -1.0F : 1.0F;
      for (float& value : mean) value += sign * recipe.contrast - step;
    }

    const float light = random.uniform(0.0F, 6.2831853F);
    const float light_y = std::sin(light);
    const float light_x = std::cos(light);
    const bool mixed = regime == Regime::Ambiguous;
    const float cells = 6.0F;
    const Field mixing = mixed ? fractal_noise(rows, columns, cells, cells, 3, random) : Field();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const float d = placed.distance.at(i, j);
        const int64_t y = placed.top + i;
        const int64_t x = placed.left + j;
        if (d < 0.0F) mask.at(y, x) = 255;
        const float side_lit = std::clamp(((static_cast<float>(y) - placed.y) * light_y +
                                           (static_cast<float>(x) - placed.x) * light_x) / placed.radius, -1.3F, 1.3F);
        float* out = canvas.at(y, x);
        if (d > 0.0F && !mixed) {  // the contact shadow, away from the light
          const float shadow = 0.9F * recipe.shading * std::max(0.0F, 0.3F - side_lit) *
                               std::max(0.0F, 1.0F - d / std::max(2.0F, 0.25F * placed.radius));
          for (int c = 0; c < 3; ++c) out[c] *= 1.0F - shadow;
        }
        if (d > 2.0F * recipe.edge) continue;
        const float ragged = mixed ? d + 0.6F * recipe.edge * mixing.at(i, j) : d;
        const float alpha = recipe.opacity * smooth_step(-ragged, recipe.edge);
        const float depth = std::clamp(-d / (0.6F * placed.radius), 0.0F, 1.0F);
        const float shade = 1.0F + recipe.shading * (side_lit * 0.8F + (depth - 0.5F) * 0.6F);
        const float* rgb = dress.data() + 3 * (i * columns + j);
        for (std::size_t c = 0; c < 3; ++c) {
          const float value = (mean[c] + gain[c] * (rgb[c] - worn.mean(c))) * shade;
          out[c] += alpha * (value - out[c]);
        }
      }
    }
  }

  /// Draws something with an outline that is no object: a leaf-like piece of the scene itself, moved but neither
  /// turned nor scaled nor shaded, or a mere shadow, or a mere contour.
  void distract(Canvas& canvas, const Photograph& photograph, const Window& scene, Random& random) const {
    const float area = side() * side() * random.uniform(0.012F, 0.07F);
    const Shape shape(random.chance(0.5F) ? Shape::Kind::Leaf : Shape::Kind::Lobes, random);
    const float edge = 0.7F * side() / 96.0F;
    const Placed placed = rasterize(shape, random.uniform(0.0F, side()), random.uniform(0.0F, side()), area,
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

  std::vector<Photograph> photographs_;
  Options options_;
};

}  // namespace moecod::data
