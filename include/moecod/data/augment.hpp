#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moecod/data/augment_color.hpp"
#include "moecod/data/augment_geometry.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

/// What is done to a training picture and its mask, in the order of the members; all zero does nothing. The mask
/// moves with the picture and stays 0 or 255.
struct Augment {
  float flip = 0.0F;          // probability of a mirror image, left to right
  float flip_vertical = 0.0F; // probability of a mirror image, top to bottom
  bool quarter_turns = false; // a turn by 0, 90, 180 or 270 degrees, equally likely
  int64_t crop = 0;           // up to this many pixels are cut from each side's length, centred; pixels
  float rotate = 0.0F;        // probability of a rotation
  float degrees = 0.0F;       // by an angle in +-degrees
  bool replicate = false;     // what a rotation uncovers: the border's colours (true), or black and no object
  float brightness = 0.0F;    // factor in 1 +- brightness
  float contrast = 0.0F;      // factor in 1 +- contrast, about the mean grey
  float saturation = 0.0F;    // factor in 1 +- saturation; 0 is grey
  float sharpness = 0.0F;     // factor in 0 .. sharpness; 0 is blurred, 1 unchanged, more is sharpened; 0 = off
  float hue_shift = 0.0F;     // added to the hue, +-, degrees of the colour circle
  float saturation_shift = 0.0F;  // added to the HSV saturation, +-, of 255
  float value_shift = 0.0F;   // added to the HSV value, +-, of 255
  float mix_channels = 0.0F;  // share of a random colour matrix, 0..1; half of the time also a random channel order
  float mask_noise = 0.0F;    // share of the mask's pixels replaced by 0 or 255 at random

  /// SINet-V2 and UJSC: mirror, centred crop up to 30 pixels, +-15 degrees one time in five, brightness and contrast
  /// 0.5..1.5, saturation 0..2, sharpness 0..3, salt and pepper on 0.15 % of the mask.
  static Augment sinet_v2() {
    return {.flip = 0.5F, .crop = 30, .rotate = 0.2F, .degrees = 15.0F, .brightness = 0.5F, .contrast = 0.5F,
            .saturation = 1.0F, .sharpness = 3.0F, .mask_noise = 0.0015F};
  }
  /// ZoomNet and ZoomNeXt: mirror, +-90 degrees half of the time with the border repeated, brightness and contrast
  /// +-0.1, hue, saturation and value +-5, 10, 10 (hue in steps of two degrees).
  static Augment zoomnext() {
    return {.flip = 0.5F, .rotate = 0.5F, .degrees = 90.0F, .replicate = true, .brightness = 0.1F, .contrast = 0.1F,
            .hue_shift = 10.0F, .saturation_shift = 10.0F, .value_shift = 10.0F};
  }
  /// For few photographs: both mirrors, quarter turns, colour jitter and channel mixing.
  static Augment strong() {
    return {.flip = 0.5F, .flip_vertical = 0.5F, .quarter_turns = true, .brightness = 0.3F, .contrast = 0.3F,
            .saturation = 0.5F, .hue_shift = 20.0F, .mix_channels = 0.35F};
  }
  /// "none", "sinet_v2", "zoomnext" or "strong". Errors: std::invalid_argument for another name.
  static Augment preset(std::string_view name) {
    if (name == "none") return {};
    if (name == "sinet_v2") return sinet_v2();
    if (name == "zoomnext") return zoomnext();
    if (name == "strong") return strong();
    throw std::invalid_argument("Augment: expected none, sinet_v2, zoomnext or strong, got " + std::string(name));
  }

  /// The sample changed as the random stream says; the stream's key is the only state, so key it on
  /// (seed, epoch, index). Errors: std::invalid_argument if image and mask have different sizes.
  Sample operator()(Sample sample, Random random) const {
    if (sample.image.height != sample.mask.height || sample.image.width != sample.mask.width ||
        sample.image.channels != 3 || sample.mask.channels != 1) {
      throw std::invalid_argument("Augment: expected an RGB image and a mask of one size for " + sample.name);
    }
    // Each step draws from its own stream, so switching one off leaves the others as they were.
    const uint64_t key = random.bits();
    geometry(sample, key);
    colors(sample.image, key);
    if (mask_noise > 0.0F) {
      Random noise{key, 3};
      const auto pixels = static_cast<int64_t>(sample.mask.pixels.size());
      const auto count = static_cast<int64_t>(mask_noise * static_cast<float>(pixels));
      for (int64_t i = 0; i < count; ++i) {
        sample.mask.pixels[static_cast<std::size_t>(noise.below(pixels))] = noise.chance(0.5F) ? 255 : 0;
      }
    }
    return sample;
  }

 private:
  void geometry(Sample& sample, uint64_t key) const {
    Random draw{key, 1};
    const bool mirror = draw.chance(flip);
    const bool upside_down = draw.chance(flip_vertical);
    const int64_t quarters = draw.below(4);
    const int64_t cut_y = draw.below(crop + 1);
    const int64_t cut_x = draw.below(crop + 1);
    const bool turn = draw.chance(rotate);
    const float angle = draw.uniform(-degrees, degrees);
    for (Image* image : {&sample.image, &sample.mask}) {
      if (mirror) *image = mirrored(*image);
      if (upside_down) *image = flipped(*image);
      if (quarter_turns) {
        for (int64_t i = 0; i < quarters; ++i) *image = quarter_turned(*image);
      }
      const int64_t height = std::max<int64_t>(image->height - cut_y, (image->height + 1) / 2);
      const int64_t width = std::max<int64_t>(image->width - cut_x, (image->width + 1) / 2);
      if (height != image->height || width != image->width) *image = centre_cropped(*image, height, width);
      if (turn) *image = rotated(*image, angle, replicate);
    }
    if (turn) sample.mask = binarize(std::move(sample.mask));
  }

  void colors(Image& image, uint64_t key) const {
    Random draw{key, 2};
    const auto factor = [&draw](float range) { return 1.0F + range * draw.uniform(-1.0F, 1.0F); };
    const float by_brightness = factor(brightness);
    const float by_contrast = factor(contrast);
    const float by_saturation = factor(saturation);
    const float by_sharpness = sharpness * draw.uniform();
    const float hue_by = hue_shift * draw.uniform(-1.0F, 1.0F);
    const float saturation_by = saturation_shift * draw.uniform(-1.0F, 1.0F);
    const float value_by = value_shift * draw.uniform(-1.0F, 1.0F);
    if (brightness > 0.0F) adjust_brightness(image, by_brightness);
    if (contrast > 0.0F) adjust_contrast(image, by_contrast);
    if (saturation > 0.0F) adjust_saturation(image, by_saturation);
    if (sharpness > 0.0F) adjust_sharpness(image, by_sharpness);
    if (hue_shift > 0.0F || saturation_shift > 0.0F || value_shift > 0.0F) {
      shift_hsv(image, hue_by, saturation_by, value_by);
    }
    if (mix_channels > 0.0F) data::mix_channels(image, mix_channels, draw);
  }
};

}  // namespace moecod::data
