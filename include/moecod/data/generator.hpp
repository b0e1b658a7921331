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
#include "moecod/data/distractor.hpp"
#include "moecod/data/dress.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/recipe.hpp"
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
/// wears a texture from elsewhere in the same photograph, turned, scaled and perhaps mirrored, its colours moved
/// towards those around it (`dress`), shaded as a rounded body and blended in (`blend`).
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
    const Recipe recipe = recipe_for(regime, static_cast<float>(options_.difficulty), options_.size, radius);
    const float ring = std::max(3.0F, 0.4F * radius);
    const Placed placed = place(mask, area, std::max(ring, 2.0F * recipe.edge), random);
    const Moments around = surroundings(canvas, placed, ring);
    const Window window = texture(photograph, scene, placed, around, regime, random);
    const std::vector<float> colors = dress(photograph, window, placed, around, recipe);
    blend(canvas, placed, colors, recipe, regime == Regime::Ambiguous, random);
    for (int64_t i = 0; i < placed.distance.height; ++i) {
      for (int64_t j = 0; j < placed.distance.width; ++j) {
        if (placed.distance.at(i, j) < 0.0F) mask.at(placed.top + i, placed.left + j) = 255;
      }
    }
  }

  std::vector<Photograph> photographs_;
  Options options_;
};

}  // namespace moecod::data
