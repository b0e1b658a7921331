#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "moecod/data/augment_color.hpp"
#include "moecod/data/augment_draw.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"

namespace moecod::data {

/// What may be done to a training picture and its mask, in the order of the members; all zero does nothing. The mask
/// moves with the picture and stays 0 or 255. `draw` decides for one sample, and what it decides is done by
/// data::augmented, or by train::augmented on a device.
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

  /// What is done to this sample: a function of its size and of the random stream's key, so key that on
  /// (seed, epoch, index). Errors: std::invalid_argument if image and mask have different sizes.
  AugmentDraw draw(const Sample& sample, Random random) const {
    if (sample.image.height != sample.mask.height || sample.image.width != sample.mask.width ||
        sample.image.channels != 3 || sample.mask.channels != 1) {
      throw std::invalid_argument("Augment: expected an RGB image and a mask of one size for " + sample.name);
    }
    AugmentDraw out{.height = sample.image.height, .width = sample.image.width};
    // Each group of steps draws from its own stream, so switching one off leaves the others as they were.
    const uint64_t key = random.bits();
    draw_geometry(out, Random{key, 1});
    draw_colors(out, Random{key, 2});
    out.mask_noise = mask_noise;
    out.noise_key = key;
    return out;
  }

  /// The sample changed as the random stream says. Errors: as draw.
  Sample operator()(Sample sample, Random random) const {
    const AugmentDraw drawn = draw(sample, random);
    return augmented(std::move(sample), drawn);
  }

 private:
  // Numbers are drawn also for what is switched off: the others stay as they were. A stream is a number beside the key: 1
  // and 2 here, 3 noise_of's. A new step gets a stream of its own, a member of AugmentDraw, and is done twice: by augmented
  // (augment_draw.hpp) and by train::augmented, which tests/train/augment.cpp compares.

  void draw_geometry(AugmentDraw& out, Random random) const {
    out.flip = random.chance(flip);
    out.flip_vertical = random.chance(flip_vertical);
    const int64_t quarters = random.below(4);
    out.quarter_turns = quarter_turns ? quarters : 0;
    const int64_t cut_y = random.below(crop + 1);
    const int64_t cut_x = random.below(crop + 1);
    const int64_t height = out.turned_height(), width = out.turned_width();
    out.kept_height = std::max<int64_t>(height - cut_y, (height + 1) / 2);
    out.kept_width = std::max<int64_t>(width - cut_x, (width + 1) / 2);
    out.rotate = random.chance(rotate);
    out.degrees = random.uniform(-degrees, degrees);
    out.replicate = replicate;
  }

  void draw_colors(AugmentDraw& out, Random random) const {
    const auto factor = [&random](float range) { return 1.0F + range * random.uniform(-1.0F, 1.0F); };
    out.brightness = factor(brightness);
    out.contrast = factor(contrast);
    out.saturation = factor(saturation);
    const float sharper = sharpness * random.uniform();
    if (sharpness > 0.0F) out.sharpness = sharper;
    out.hue_shift = hue_shift * random.uniform(-1.0F, 1.0F);
    out.saturation_shift = saturation_shift * random.uniform(-1.0F, 1.0F);
    out.value_shift = value_shift * random.uniform(-1.0F, 1.0F);
    if (mix_channels > 0.0F) out.colors = random_colors(mix_channels, random);
  }
};

}  // namespace moecod::data
