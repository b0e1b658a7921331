#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace moecod {

/// An 8-bit picture in memory: rows from top to bottom, pixels from left to right, channels interleaved (HWC).
/// Three channels are RGB, one is grey or a mask.
struct Image {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;
  std::vector<uint8_t> pixels;

  Image() = default;
  Image(int64_t height_, int64_t width_, int64_t channels_, uint8_t value = 0)
      : height(height_), width(width_), channels(channels_) {
    if (height < 0 || width < 0 || channels < 0) {
      throw std::invalid_argument("Image: height, width and channels must not be negative, got " +
                                  std::to_string(height) + " x " + std::to_string(width) + " x " +
                                  std::to_string(channels));
    }
    pixels.assign(static_cast<std::size_t>(height * width * channels), value);
  }

  bool empty() const { return pixels.empty(); }
  uint8_t& at(int64_t y, int64_t x, int64_t c = 0) { return pixels[offset(y, x, c)]; }
  uint8_t at(int64_t y, int64_t x, int64_t c = 0) const { return pixels[offset(y, x, c)]; }
  uint8_t* row(int64_t y) { return pixels.data() + offset(y, 0, 0); }
  const uint8_t* row(int64_t y) const { return pixels.data() + offset(y, 0, 0); }
  bool operator==(const Image&) const = default;

 private:
  std::size_t offset(int64_t y, int64_t x, int64_t c) const {
    return static_cast<std::size_t>((y * width + x) * channels + c);
  }
};

/// Luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded; a grey image is returned as it is.
/// Errors: std::invalid_argument unless the image has 1 or 3 channels.
inline Image to_gray(Image image) {
  if (image.channels == 1) return image;
  if (image.channels != 3) {
    throw std::invalid_argument("to_gray: image must have 1 or 3 channels, got " + std::to_string(image.channels));
  }
  Image gray(image.height, image.width, 1);
  for (std::size_t i = 0; i < gray.pixels.size(); ++i) {
    const uint8_t* p = image.pixels.data() + 3 * i;
    gray.pixels[i] = static_cast<uint8_t>((p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 32768) >> 16);
  }
  return gray;
}

/// 255 where a grey image is at least `threshold`, else 0.
inline Image binarize(Image image, int threshold = 128) {
  for (uint8_t& value : image.pixels) value = value >= threshold ? 255 : 0;
  return image;
}

namespace detail {

/// The source pixels of every output pixel along one axis, with weights in 1/2^14 that sum to exactly 2^14.
struct ResizeAxis {
  static constexpr int kBits = 14;
  std::vector<int64_t> first;    // [out] first source pixel
  std::vector<int64_t> begin;    // [out + 1] where the weights of an output pixel begin
  std::vector<int32_t> weights;  // [begin.back()]

  ResizeAxis(int64_t in, int64_t out) {
    begin.push_back(0);
    const double scale = static_cast<double>(in) / static_cast<double>(out);
    std::vector<double> shares;
    for (int64_t o = 0; o < out; ++o) {
      shares.clear();
      if (in > out) {  // area: the part of each source pixel that the output pixel covers
        const double low = static_cast<double>(o) * scale;
        const double high = std::min(low + scale, static_cast<double>(in));
        const auto start = static_cast<int64_t>(low);
        first.push_back(start);
        for (int64_t i = start; i < in && static_cast<double>(i) < high - 1e-9; ++i) {
          const double share = std::min(high, static_cast<double>(i + 1)) - std::max(low, static_cast<double>(i));
          shares.push_back(share / (high - low));
        }
      } else {  // bilinear between pixel centres, the border repeated
        const double centre = std::clamp((static_cast<double>(o) + 0.5) * scale - 0.5, 0.0,
                                         static_cast<double>(in - 1));
        const auto start = std::min(static_cast<int64_t>(centre), std::max<int64_t>(in - 2, 0));
        first.push_back(start);
        const double right = centre - static_cast<double>(start);
        shares.push_back(1.0 - right);
        if (in > 1) shares.push_back(right);
      }
      append(shares);
    }
  }

 private:
  void append(const std::vector<double>& shares) {
    int32_t left = 1 << kBits;
    std::size_t largest = weights.size();
    for (const double share : shares) {
      weights.push_back(static_cast<int32_t>(std::lround(share * (1 << kBits))));
      left -= weights.back();
      if (weights.back() > weights[largest]) largest = weights.size() - 1;
    }
    weights[largest] += left;
    begin.push_back(static_cast<int64_t>(weights.size()));
  }
};

}  // namespace detail

/// Resizes to [height, width]: each axis by area averaging when it shrinks, bilinearly between pixel centres when it
/// grows. Fixed-point arithmetic, so the result is the same bits on every machine. A mask becomes soft at its edges:
/// `binarize` it afterwards.
/// Errors: std::invalid_argument for an empty image or a size that is not positive.
inline Image resize(const Image& image, int64_t height, int64_t width) {
  if (image.empty()) throw std::invalid_argument("resize: image is empty");
  if (height <= 0 || width <= 0) {
    throw std::invalid_argument("resize: height and width must be positive, got " + std::to_string(height) + " x " +
                                std::to_string(width));
  }
  if (height == image.height && width == image.width) return image;
  const detail::ResizeAxis rows(image.height, height);
  const detail::ResizeAxis columns(image.width, width);
  const int64_t channels = image.channels;
  const auto line = static_cast<std::size_t>(width * channels);

  // Rows are narrowed first, to 16 bits with 8 bits of fraction; then columns.
  std::vector<uint16_t> narrowed(static_cast<std::size_t>(image.height) * line);
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* source = image.row(y);
    uint16_t* target = narrowed.data() + static_cast<std::size_t>(y) * line;
    for (int64_t x = 0; x < width; ++x) {
      const int64_t begin = columns.begin[x];
      const int64_t count = columns.begin[x + 1] - begin;
      for (int64_t c = 0; c < channels; ++c) {
        int32_t sum = 1 << 5;
        for (int64_t i = 0; i < count; ++i) {
          sum += columns.weights[begin + i] * source[(columns.first[x] + i) * channels + c];
        }
        target[x * channels + c] = static_cast<uint16_t>(sum >> 6);
      }
    }
  }
  Image out(height, width, channels);
  std::vector<int32_t> sums(line);
  for (int64_t y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << 21);
    const int64_t begin = rows.begin[y];
    for (int64_t i = 0; i < rows.begin[y + 1] - begin; ++i) {
      const uint16_t* source = narrowed.data() + static_cast<std::size_t>(rows.first[y] + i) * line;
      const int32_t weight = rows.weights[begin + i];
      for (std::size_t x = 0; x < line; ++x) sums[x] += weight * source[x];
    }
    uint8_t* target = out.row(y);
    for (std::size_t x = 0; x < line; ++x) target[x] = static_cast<uint8_t>(sums[x] >> 22);
  }
  return out;
}

}  // namespace moecod
