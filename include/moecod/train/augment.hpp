#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/grid_sampler.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "moecod/data/augment_draw.hpp"
#include "moecod/train/upload.hpp"

namespace moecod::train {

namespace detail {

using Draws = std::vector<data::AugmentDraw>;

/// N numbers of each draw on a device, each a tensor [B, 1, 1, 1] that meets a batch of pictures.
template <std::size_t N, class F>
std::array<at::Tensor, N> of_each(const Draws& draws, at::Device device, const F& numbers) {
  std::vector<float> values(N * draws.size());
  for (std::size_t b = 0; b < draws.size(); ++b) {
    const std::array<float, N> of_one = numbers(draws[b]);
    for (std::size_t n = 0; n < N; ++n) values[n * draws.size() + b] = of_one[n];
  }
  const at::Tensor all = upload(values, {int64_t(N), int64_t(draws.size()), 1, 1, 1}, device);
  std::array<at::Tensor, N> out;
  for (std::size_t n = 0; n < N; ++n) out[n] = all[int64_t(n)];
  return out;
}

template <class F>
bool any(const Draws& draws, const F& does) {
  return std::any_of(draws.begin(), draws.end(), does);
}

/// Rounded as a byte is, so that a step begins with what it would begin with on the CPU.
inline at::Tensor to_bytes(at::Tensor x) { return x.add_(0.5).clamp_(0, 255).floor_(); }

inline at::Tensor luma(const at::Tensor& x) {
  // Whole numbers below 2^24, so exact.
  return (x.narrow(1, 0, 1) * 19595 + x.narrow(1, 1, 1) * 38470 + x.narrow(1, 2, 1) * 7471 + 32768)
      .mul_(1.0 / 65536)
      .floor_();
}

/// Where a draw reads from. Places are (y, x), -1 .. 1 from edge to edge of a picture; a place p of the result is
/// inner p in what the crop left, and outer inner p + shift in the picture as it came.
struct Movement {
  std::array<float, 4> inner, outer;  // 2 x 2, row by row
  std::array<float, 2> shift;

  explicit Movement(const data::AugmentDraw& draw) {
    const double radians = draw.rotate ? draw.degrees * 0.017453292519943295 : 0.0;
    const double sine = std::sin(radians), cosine = std::cos(radians);
    const auto height = double(draw.kept_height), width = double(draw.kept_width);
    inner = {float(cosine), float(sine * width / height), float(-sine * height / width), float(cosine)};

    const auto whole_y = double(draw.turned_height()), whole_x = double(draw.turned_width());
    const auto top = double((draw.turned_height() - draw.kept_height) / 2);
    const auto left = double((draw.turned_width() - draw.kept_width) / 2);
    // The crop, [2, 3]; then each turn takes (y, x) to (x, -y), and mirrors change a sign.
    std::array<double, 3> y{height / whole_y, 0.0, (2 * top + height) / whole_y - 1};
    std::array<double, 3> x{0.0, width / whole_x, (2 * left + width) / whole_x - 1};
    const auto negated = [](const std::array<double, 3>& row) { return std::array{-row[0], -row[1], -row[2]}; };
    for (int64_t i = 0; i < draw.quarter_turns; ++i) y = std::exchange(x, negated(y));
    if (draw.flip_vertical) y = negated(y);
    if (draw.flip) x = negated(x);
    outer = {float(y[0]), float(y[1]), float(x[0]), float(x[1])};
    shift = {float(y[2]), float(x[2])};
  }
};

inline at::Tensor moved(const at::Tensor& pictures, const Draws& draws) {
  const at::Device device = pictures.device();
  const int64_t height = pictures.size(2), width = pictures.size(3);
  const auto [yy, yx, xy, xx, last_y, last_x, black] = of_each<7>(draws, device, [](const data::AugmentDraw& draw) {
    const auto m = Movement(draw).inner;
    return std::array{m[0], m[1], m[2], m[3], 1 - 1 / float(draw.kept_height), 1 - 1 / float(draw.kept_width),
                      draw.rotate && !draw.replicate ? 1.0F : 0.0F};
  });
  const auto [oyy, oyx, oxy, oxx, shift_y, shift_x] = of_each<6>(draws, device, [](const data::AugmentDraw& draw) {
    const Movement m(draw);
    return std::array{m.outer[0], m.outer[1], m.outer[2], m.outer[3], m.shift[0], m.shift[1]};
  });
  const auto centres = [&](int64_t n) {
    return at::arange(n, pictures.options()).mul_(2).add_(1).div_(double(n)).sub_(1);
  };
  const at::Tensor y = centres(height).view({1, 1, height, 1}), x = centres(width).view({1, 1, 1, width});
  at::Tensor v = yy * y + yx * x, u = xy * y + xx * x;
  const at::Tensor uncovered = v.abs().gt(1).logical_or_(u.abs().gt(1)).logical_and_(black.gt(0));
  v = at::clamp(v, -last_y, last_y);
  u = at::clamp(u, -last_x, last_x);
  const at::Tensor grid = at::stack({oxy * v + oxx * u + shift_x, oyy * v + oyx * u + shift_y}, 4).squeeze(1);
  const at::Tensor out = at::grid_sampler(pictures, grid, /*interpolation: linear*/ 0, /*padding: border*/ 1,
                                          /*align_corners=*/false);
  return to_bytes(out).masked_fill_(uncovered, 0);
}

inline at::Tensor sharpened(const at::Tensor& x, const at::Tensor& factor) {
  if (x.size(2) < 3 || x.size(3) < 3) return x;
  const auto inside = [](const at::Tensor& t) {
    return t.narrow(2, 1, t.size(2) - 2).narrow(3, 1, t.size(3) - 2);
  };
  const at::Tensor p = inside(x);
  const at::Tensor smooth = at::avg_pool2d(x, 3, 1, 0, false, true, /*divisor_override=*/1).add_(p, 4).div_(13);
  at::Tensor out = x.clone();
  inside(out).copy_(to_bytes(smooth + factor * (p - smooth)));
  return out;
}

inline at::Tensor hsv_shifted(const at::Tensor& x, const std::array<at::Tensor, 3>& shifts) {
  const auto& [turn, saturation, value] = shifts;  // in sixths of the circle, in 0..1, of 255
  const at::Tensor r = x.narrow(1, 0, 1), g = x.narrow(1, 1, 1), b = x.narrow(1, 2, 1);
  const at::Tensor high = x.amax({1}, true), range = high - x.amin({1}, true);
  const at::Tensor divisor = range.clamp_min(1);
  const at::Tensor h = at::where(high == r, (g - b) / divisor,
                                 at::where(high == g, (b - r) / divisor + 2, (r - g) / divisor + 4)) + turn;
  // A grey pixel has no hue to saturate.
  const at::Tensor s = (range / high.clamp_min(1) + saturation).clamp_(0, 1).mul_(range.gt(0));
  const at::Tensor v = (high + value).clamp_(0, 255);
  std::vector<at::Tensor> out;
  for (int c = 0; c < 3; ++c) {
    const at::Tensor k = (h + (5 - 2 * c)).remainder_(6);
    out.push_back(v - v * s * at::minimum(k, 4 - k).clamp_(0, 1));
  }
  return to_bytes(at::cat(out, 1));
}

/// Masks with noise, in place.
inline void add_noise(const at::Tensor& masks, const Draws& draws) {
  const int64_t pixels = masks.size(2) * masks.size(3);
  std::map<int64_t, float> replaced;  // each pixel once, so that the order of writes does not show
  for (std::size_t b = 0; b < draws.size(); ++b)
    for (const auto& [pixel, value] : data::noise_of(draws[b], pixels)) replaced[int64_t(b) * pixels + pixel] = value;
  std::vector<int64_t> places;
  std::vector<float> values;
  for (const auto& [place, value] : replaced) {
    places.push_back(place);
    values.push_back(value);
  }
  const auto count = int64_t(places.size());
  masks.view({-1}).scatter_(0, upload(places, {count}, masks.device()), upload(values, {count}, masks.device()));
}

}  // namespace detail

/// What data::augmented does to one sample, done to a batch on its device: one step after the other, each for all
/// samples at once, and only those that a draw asks for.
///
/// images [B, 3, H, W] and masks [B, 1, H, W], float32, whole numbers 0..255; the result has the same shapes and is
/// contiguous. Movements are one reading of images and masks together, linear in between, where data::augmented moves a
/// sample at its own size and the loader then resizes it; noise is that of a mask of the batch's size. Else both do the
/// same, with the same rounding.
/// Synchronises: never. Errors: c10::Error for other shapes, or unless there is one draw a sample.
inline std::pair<at::Tensor, at::Tensor> augmented(at::Tensor images, at::Tensor masks,
                                                   const std::vector<data::AugmentDraw>& draws) {
  using data::AugmentDraw;
  using namespace detail;
  const auto count = int64_t(draws.size());
  TORCH_CHECK(images.dim() == 4 && images.size(0) == count && images.size(1) == 3,
              "augmented: images must be [B, 3, H, W] with B = ", count, " draws, got ", images.sizes());
  const std::vector<int64_t> of_masks{count, 1, images.size(2), images.size(3)};
  TORCH_CHECK(masks.sizes() == of_masks, "augmented: masks must be ", of_masks, " as the images are, got ",
              masks.sizes());
  const at::NoGradGuard no_grad;
  const auto one = [&](float AugmentDraw::* member) {
    return of_each<1>(draws, images.device(), [&](const AugmentDraw& draw) { return std::array{draw.*member}; })[0];
  };
  const auto wanted = [&](float AugmentDraw::* factor) {
    return any(draws, [&](const AugmentDraw& draw) { return draw.*factor != 1.0F; });
  };
  if (any(draws, [](const AugmentDraw& d) {
        return d.flip || d.flip_vertical || d.quarter_turns != 0 || d.crops() || d.rotate;
      })) {
    const at::Tensor both = moved(at::cat({images, masks}, 1), draws);
    images = both.narrow(1, 0, 3);
    masks = both.narrow(1, 3, 1).contiguous();
  }
  if (wanted(&AugmentDraw::brightness)) images = to_bytes(images * one(&AugmentDraw::brightness));
  if (wanted(&AugmentDraw::contrast)) {
    const at::Tensor gray = luma(images);
    const at::Tensor mean =
        gray.sum({1, 2, 3}, true, at::kDouble).to(at::kFloat).div_(double(images.size(2) * images.size(3)));
    images = to_bytes(mean + one(&AugmentDraw::contrast) * (images - mean));
  }
  if (wanted(&AugmentDraw::saturation)) {
    const at::Tensor gray = luma(images);
    images = to_bytes(gray + one(&AugmentDraw::saturation) * (images - gray));
  }
  if (wanted(&AugmentDraw::sharpness)) images = sharpened(images, one(&AugmentDraw::sharpness));
  if (any(draws, [](const AugmentDraw& draw) { return draw.shifts_hsv(); })) {
    images = hsv_shifted(images, of_each<3>(draws, images.device(), [](const AugmentDraw& draw) {
      return std::array{draw.hue_shift / 60, draw.saturation_shift / 255, draw.value_shift};
    }));
  }
  if (any(draws, [](const AugmentDraw& draw) { return draw.colors != data::identity_colors; })) {
    std::vector<at::Tensor> rows;
    for (std::size_t row = 0; row < 3; ++row) {
      const auto [r, g, b] =
          of_each<3>(draws, images.device(), [row](const AugmentDraw& draw) { return draw.colors[row]; });
      rows.push_back(r * images.narrow(1, 0, 1) + g * images.narrow(1, 1, 1) + b * images.narrow(1, 2, 1));
    }
    images = to_bytes(at::cat(rows, 1));
  }
  if (any(draws, [](const AugmentDraw& draw) { return draw.mask_noise > 0.0F; })) {
    masks = masks.clone();
    add_noise(masks, draws);
  }
  return {images.contiguous(), masks};
}

}  // namespace moecod::train
