#pragma once
#include <ATen/ops/flip.h>

#include <set>
#include <utility>

#include "moecod/layers/resize.hpp"
#include "moecod/post/mean_logits.hpp"
#include "moecod/post/views.hpp"

namespace moecod::post {

/// Test-time augmentation: a model asked about several views of its pictures, the mean of its logits.
///
///     augmented(x) = (1 / n) sum over views v of v^-1(f(v(x)))
///
/// f takes images [B, C, H, W] and gives logits [B, c, h, w]; v flips and resizes the images, v^-1 flips the logits back
/// and resizes them to those of the first view. Both resize bilinearly. The sides of a resized view are the nearest
/// multiples of `multiple` (at least one), as a backbone's stride asks; a view of scale 1 has the images' own size. Views
/// are asked one after another in their order, so that f sees the pictures as they are first. With all combinations of
/// the flips at each scale, as `views_from` makes them, the result is equivariant under those flips for any f.
///
/// Synchronises: as f. Errors: c10::Error for images that are not [B, C, H, W], no views, or two scales that come to
/// the same size.
template <class F>
class Augmented {
 public:
  explicit Augmented(F f, std::vector<View> views, int64_t multiple = 32)
      : f_(std::move(f)), views_(std::move(views)), multiple_(multiple) {
    TORCH_CHECK(!views_.empty(), "test-time augmentation: needs at least one view");
    TORCH_CHECK(multiple_ > 0, "test-time augmentation: multiple must be positive, got ", multiple_);
  }

  at::Tensor operator()(const at::Tensor& images) {
    TORCH_CHECK(images.dim() == 4, "test-time augmentation: images must be [B, C, H, W], got ", images.sizes());
    check_sizes(images.size(2), images.size(3));
    MeanLogits mean;
    std::vector<int64_t> size;
    for (const View& view : views_) {
      at::Tensor seen = images;
      if (view.scale != 1)
        seen = layers::resize(seen, side(images.size(2), view.scale), side(images.size(3), view.scale));
      const std::vector<int64_t> axes = flipped(view);
      if (!axes.empty()) seen = at::flip(seen, axes);
      at::Tensor logits = f_(seen);
      TORCH_CHECK(logits.dim() == 4, "test-time augmentation: logits must be [B, C, H, W], got ", logits.sizes());
      if (!axes.empty()) logits = at::flip(logits, axes);
      if (size.empty()) size = {logits.size(2), logits.size(3)};
      mean.add(layers::resize(logits, size[0], size[1]));
    }
    return mean.mean();
  }

 private:
  int64_t side(int64_t length, double scale) const {
    if (scale == 1) return length;
    return std::max<int64_t>(1, std::llround(double(length) * scale / double(multiple_))) * multiple_;
  }

  static std::vector<int64_t> flipped(const View& view) {
    std::vector<int64_t> axes;
    if (view.vflip) axes.push_back(2);
    if (view.flip) axes.push_back(3);
    return axes;
  }

  /// A scale that rounds to another one's size would count its view twice.
  void check_sizes(int64_t height, int64_t width) const {
    std::set<double> scales;
    std::set<std::pair<int64_t, int64_t>> sizes;
    for (const View& view : views_) {
      if (!scales.insert(view.scale).second) continue;
      const std::pair size{side(height, view.scale), side(width, view.scale)};
      TORCH_CHECK(sizes.insert(size).second, "test-time augmentation: scale ", view.scale, " of ", height, " x ", width,
                  " comes to ", size.first, " x ", size.second, " at multiples of ", multiple_,
                  ", the size of another view; leave it out or give one further away");
    }
  }

  F f_;
  std::vector<View> views_;
  int64_t multiple_;
};

}  // namespace moecod::post
