#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moecod/data/noise.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

namespace detail {

using Color = std::array<float, 3>;

/// Three natural colours of one hue family, dark to light.
inline std::array<Color, 3> palette(Random& random) {
  static constexpr std::array<Color, 8> kBases{{{92, 110, 48},    // grass
                                                {120, 88, 56},    // bark
                                                {150, 134, 104},  // sand
                                                {112, 112, 108},  // stone
                                                {56, 96, 84},     // water weed
                                                {150, 96, 52},    // dead leaves
                                                {84, 108, 132},   // slate
                                                {126, 70, 66}}};  // coral
  const Color base = kBases[static_cast<std::size_t>(random.below(static_cast<int64_t>(kBases.size())))];
  std::array<Color, 3> colors{};
  static constexpr std::array<float, 3> kLight{0.45F, 1.0F, 1.6F};
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t c = 0; c < 3; ++c) {
      colors[i][c] = std::clamp(base[c] * kLight[i] * random.uniform(0.85F, 1.15F), 4.0F, 250.0F);
    }
  }
  return colors;
}

/// The colour at t in 0..1 of the palette's piecewise linear ramp.
inline Color ramp(const std::array<Color, 3>& colors, float t) {
  t = std::clamp(t, 0.0F, 1.0F) * 2.0F;
  const std::size_t lower = t >= 1.0F ? 1 : 0;
  const float part = t - static_cast<float>(lower);
  Color out{};
  for (std::size_t c = 0; c < 3; ++c) out[c] = colors[lower][c] + part * (colors[lower + 1][c] - colors[lower][c]);
  return out;
}

/// Soil, lichen: noise of many octaves, contrast stretched.
inline Field earth(int64_t size, Random& random) {
  const float cells = random.uniform(3.0F, 10.0F);
  Field tone = fractal_noise(size, size, cells, cells, 6, random);
  for (float& value : tone.values) value = 0.5F + 0.6F * value;
  return tone;
}

/// Bark, stripes: waves across one direction, bent by coarse noise and roughened by streaks.
inline Field bark(int64_t size, Random& random) {
  const Field bend = fractal_noise(size, size, 3.0F, 3.0F, 3, random);
  const Field streaks = fractal_noise(size, size, 6.0F, 48.0F, 3, random);
  const float waves = random.uniform(8.0F, 26.0F);
  const float strength = random.uniform(1.5F, 5.0F);
  const float angle = random.uniform(0.0F, 3.1415927F);
  const float along_y = std::sin(angle);
  const float along_x = std::cos(angle);
  Field tone(size, size);
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      const float across = (along_y * static_cast<float>(y) + along_x * static_cast<float>(x)) /
                           static_cast<float>(size);
      const float wave = std::sin(6.2831853F * waves * across + strength * bend.at(y, x) * 3.0F);
      tone.at(y, x) = 0.5F + 0.28F * wave + 0.35F * streaks.at(y, x);
    }
  }
  return tone;
}

/// Pebbles, scales: cells with dark seams, each of its own rough tone.
inline Field pebbles(int64_t size, Random& random) {
  const Cells cells = cellular_noise(size, size, random.uniform(12.0F, 36.0F), random);
  const Field rough = fractal_noise(size, size, 8.0F, 8.0F, 5, random);
  Field tone(size, size);
  for (std::size_t i = 0; i < tone.values.size(); ++i) {
    const float seam = std::min(1.0F, cells.border.values[i] * 5.0F);
    tone.values[i] = seam * (0.75F - 0.45F * cells.inside.values[i]) + 0.3F * rough.values[i] + 0.1F;
  }
  return tone;
}

/// Foliage: pointed leaves laid over each other, each with a light side, a mid-rib and a shadow.
inline Field foliage(int64_t size, Random& random) {
  Field tone = fractal_noise(size, size, 6.0F, 6.0F, 5, random);
  for (float& value : tone.values) value = 0.2F + 0.2F * value;
  const float length = static_cast<float>(size) * random.uniform(0.03F, 0.08F);
  const float slender = random.uniform(0.2F, 0.5F);
  const float preferred = random.uniform(0.0F, 6.2831853F);
  const float spread = random.uniform(0.3F, 1.6F);
  const auto leaves = static_cast<int64_t>(2.2F * static_cast<float>(size * size) / (length * length * slender));
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const float half = length * random.uniform(0.6F, 1.2F);
    const float angle = preferred + spread * random.bell();
    const float sine = std::sin(angle);
    const float cosine = std::cos(angle);
    const float y0 = random.uniform(0.0F, static_cast<float>(size));
    const float x0 = random.uniform(0.0F, static_cast<float>(size));
    const float base = 0.25F + 0.5F * static_cast<float>(leaf) / static_cast<float>(leaves) + 0.08F * random.bell();
    const auto reach = static_cast<int64_t>(half) + 1;
    for (int64_t y = std::max<int64_t>(0, static_cast<int64_t>(y0) - reach);
         y <= std::min(size - 1, static_cast<int64_t>(y0) + reach); ++y) {
      for (int64_t x = std::max<int64_t>(0, static_cast<int64_t>(x0) - reach);
           x <= std::min(size - 1, static_cast<int64_t>(x0) + reach); ++x) {
        const float dy = static_cast<float>(y) - y0;
        const float dx = static_cast<float>(x) - x0;
        const float along = (cosine * dx + sine * dy) / half;
        const float across = (cosine * dy - sine * dx) / (half * slender);
        const float width = 1.0F - along * along;
        if (width <= 0.0F || std::fabs(across) > width) continue;
        const float rib = std::fabs(across) < 0.12F ? 0.12F : 0.0F;
        tone.at(y, x) = base + 0.12F * across / width + 0.1F * along + rib;
      }
    }
  }
  return tone;
}

}  // namespace detail

inline constexpr std::array<std::string_view, 4> kProceduralTextures{"earth", "bark", "pebbles", "foliage"};

/// Stand-ins for photographs, made of procedural textures: noise of many octaves, bent stripes, cells, leaves. Each
/// is two textures of one kind and one palette, mixed by coarse noise, so that a picture has different places to
/// hide. The n-th of a seed is the same whatever `count` is; kinds take turns; named "procedural-<n>-<kind>".
///
/// `size`: side in pixels, at least 64. Errors: std::invalid_argument for a smaller one.
inline std::vector<Photograph> procedural_photographs(int64_t count, uint64_t seed, int64_t size = 512) {
  if (size < 64 || count < 0) {
    throw std::invalid_argument("procedural_photographs: expected size >= 64 and count >= 0, got " +
                                std::to_string(size) + " and " + std::to_string(count));
  }
  std::vector<Photograph> out;
  for (int64_t n = 0; n < count; ++n) {
    Random random{seed, static_cast<uint64_t>(n), 0x7E87};
    const auto kind = static_cast<std::size_t>(n) % kProceduralTextures.size();
    const auto texture = [&] {
      switch (kind) {
        case 0: return detail::earth(size, random);
        case 1: return detail::bark(size, random);
        case 2: return detail::pebbles(size, random);
        default: return detail::foliage(size, random);
      }
    };
    const Field first = texture();
    const Field second = texture();
    const Field which = fractal_noise(size, size, 2.5F, 2.5F, 3, random);
    const Field grain = fractal_noise(size, size, 64.0F, 64.0F, 3, random);
    const auto colors = detail::palette(random);
    Image image(size, size, 3);
    for (std::size_t i = 0; i < first.values.size(); ++i) {
      const float mix = std::clamp(0.5F + 2.5F * which.values[i], 0.0F, 1.0F);
      const float tone = first.values[i] + mix * (second.values[i] - first.values[i]) + 0.1F * which.values[i];
      const detail::Color color = detail::ramp(colors, tone);
      for (std::size_t c = 0; c < 3; ++c) {
        image.pixels[3 * i + c] =
            static_cast<uint8_t>(std::clamp(color[c] + 14.0F * grain.values[i] + 0.5F, 0.0F, 255.0F));
      }
    }
    std::string number = std::to_string(n);
    number.insert(0, number.size() < 3 ? 3 - number.size() : 0, '0');
    out.emplace_back("procedural-" + number + "-" + std::string(kProceduralTextures[kind]), std::move(image));
  }
  return out;
}

}  // namespace moecod::data
