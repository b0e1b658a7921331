#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/augment_color.hpp"
#include "moecod/data/augment_geometry.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

/// What is to be done to one sample, in the order of the members: what an Augment drew for it. `augmented` does it to
/// the sample, train::augmented to the samples of a batch on their device.
struct AugmentDraw {
  int64_t height = 0, width = 0;            // of the sample that it was drawn for, pixels
  bool flip = false;                        // left to right
  bool flip_vertical = false;               // top to bottom
  int64_t quarter_turns = 0;                // 0..3, counter-clockwise
  int64_t kept_height = 0, kept_width = 0;  // of the centre that the crop behind the quarter turns leaves, pixels
  bool rotate = false;
  float degrees = 0.0F;                     // counter-clockwise
  bool replicate = false;                   // what the rotation uncovers: the border's colours, or black and no object
  float brightness = 1.0F, contrast = 1.0F, saturation = 1.0F, sharpness = 1.0F;  // factors
  float hue_shift = 0.0F;                   // degrees of the colour circle
  float saturation_shift = 0.0F, value_shift = 0.0F;  // of 255
  ColorMatrix colors = identity_colors;
  float mask_noise = 0.0F;                  // share of the mask's pixels
  uint64_t noise_key = 0;

  int64_t turned_height() const { return quarter_turns % 2 == 0 ? height : width; }
  int64_t turned_width() const { return quarter_turns % 2 == 0 ? width : height; }
  bool crops() const { return kept_height != turned_height() || kept_width != turned_width(); }
  bool operator==(const AugmentDraw&) const = default;
  bool shifts_hsv() const { return hue_shift != 0.0F || saturation_shift != 0.0F || value_shift != 0.0F; }
};

/// The pixels that noise replaces in a mask of so many, each with its new value; a later one goes over an earlier one.
inline std::vector<std::pair<int64_t, uint8_t>> noise_of(const AugmentDraw& draw, int64_t pixels) {
  std::vector<std::pair<int64_t, uint8_t>> out(
      static_cast<std::size_t>(draw.mask_noise * static_cast<float>(pixels)));
  Random noise{draw.noise_key, 3};
  for (auto& [pixel, value] : out) {
    value = noise.chance(0.5F) ? 255 : 0;
    pixel = noise.below(pixels);
  }
  return out;
}

/// The sample with all that was drawn for it done. Errors: std::invalid_argument if it was drawn for another size.
inline Sample augmented(Sample sample, const AugmentDraw& draw) {
  if (sample.image.height != draw.height || sample.image.width != draw.width) {
    throw std::invalid_argument("augmented: drawn for " + std::to_string(draw.height) + " x " +
                                std::to_string(draw.width) + " pixels, " + sample.name + " has " +
                                std::to_string(sample.image.height) + " x " + std::to_string(sample.image.width));
  }
  for (Image* image : {&sample.image, &sample.mask}) {
    if (draw.flip) *image = mirrored(*image);
    if (draw.flip_vertical) *image = flipped(*image);
    for (int64_t i = 0; i < draw.quarter_turns; ++i) *image = quarter_turned(*image);
    if (draw.crops()) *image = centre_cropped(*image, draw.kept_height, draw.kept_width);
    if (draw.rotate) *image = rotated(*image, draw.degrees, draw.replicate);
  }
  if (draw.rotate) sample.mask = binarize(std::move(sample.mask));
  if (draw.brightness != 1.0F) adjust_brightness(sample.image, draw.brightness);
  if (draw.contrast != 1.0F) adjust_contrast(sample.image, draw.contrast);
  if (draw.saturation != 1.0F) adjust_saturation(sample.image, draw.saturation);
  if (draw.sharpness != 1.0F) adjust_sharpness(sample.image, draw.sharpness);
  if (draw.shifts_hsv()) shift_hsv(sample.image, draw.hue_shift, draw.saturation_shift, draw.value_shift);
  if (draw.colors != identity_colors) mix_channels(sample.image, draw.colors);
  for (const auto& [pixel, value] : noise_of(draw, static_cast<int64_t>(sample.mask.pixels.size()))) {
    sample.mask.pixels[static_cast<std::size_t>(pixel)] = value;
  }
  return sample;
}

}  // namespace moecod::data
