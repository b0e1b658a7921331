#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "moecod/expert/decoder/aspp.hpp"
#include "moecod/expert/decoder/mixed_scale_unit.hpp"
#include "moecod/expert/decoder/scale_integration.hpp"
#include "moecod/loss/uncertainty_aware.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// ZoomNet-style decoder: the picture at 0.5, 1 and 1.5 times its size, merged level by level.
///
///     f_i^s = CBR3(P_i^s), i = 1, 2, 3;  f_4^s = ASPP(P_4^s)      the same weights for every scale s
///     z_4 = unit(merge(f_4));   z_i = unit(merge(f_i) + up z_(i+1))
///     map = conv1(CBR3 to 32 (up CBR3(up z_1)))
///
/// merge is multi-head scale integration, unit the hierarchical mixed-scale unit. The middle scale's pyramid is the
/// shared one. The other two come from the shared backbone run again on the resized pictures (sides rounded to
/// multiples of 32, at least 32), only on the rows that were routed here: 2.5 times the backbone's own cost for them.
/// With Options::resample they are the shared features, resized: free, but no new detail is seen, so 'zooming' is
/// then a manner of speaking; `input` then leaves the pixels out.
///
/// Loss: bce + lambda(progress) * uncertainty (loss/uncertainty_aware.hpp). In training the running statistics of the
/// layers shared by the scales (f_i) move three times in a forward, once a scale.
///
/// Shapes: image [n, 3, H, W], P_i [n, channels[i-1], H/2^(i+1), W/2^(i+1)] -> logits [n, 1, H, W], four times P1's
/// size; no side outputs.
/// Synchronises: never by itself. Errors: c10::Error on other shapes, or without an encoder unless resampling.
/// Source: Pang et al. 2022 (ZoomNet), arXiv 2203.02688; Pang et al. 2024 (ZoomNeXt), arXiv 2310.20208.
class ZoomNet : public torch::nn::Module {
 public:
  struct Options {
    std::vector<int64_t> channels{64, 128, 320, 512};  ///< of the four levels, finest first
    int64_t width = 128;                               ///< channels of the decoder, >= 8
    int64_t heads = 4;                                 ///< of the scale integration; lowered to divide the width
    int64_t groups = 6;                                ///< of the mixed-scale unit, >= 2
    bool resample = false;                             ///< resize features instead of encoding two more scales
    double initial_logit = -2;                         ///< where the map starts; objects are rare
  };
  using rows = moecod::rows::Images;
  using Output = decoder::Maps;

  /// The pyramids of the picture at 0.5, 1 and 1.5 times its size.
  struct Views {
    Pyramid small, middle, large;
    static constexpr auto members = std::make_tuple(&Views::small, &Views::middle, &Views::large);
  };

  explicit ZoomNet(const Options& options) : options_(options) {
    decoder::check_options("ZoomNet", options.channels, options.width);
    const int64_t c = options.width;
    for (std::size_t i = 0; i < 4; ++i) {
      const std::string level = std::to_string(i + 1);
      if (i < 3)
        reduce_[i] =
            register_module("reduce" + level, decoder::conv_norm(options.channels[i], c, 3, decoder::After::relu));
      merge_[i] = register_module("merge" + level, std::make_shared<decoder::ScaleIntegration>(c, options.heads));
      unit_[i] = register_module("unit" + level, std::make_shared<decoder::MixedScaleUnit>(c, options.groups));
    }
    aspp_ = register_module("aspp", std::make_shared<decoder::Aspp>(options.channels[3], c));
    up0_ = register_module("up0", decoder::conv_norm(c, c, 3, decoder::After::relu));
    up1_ = register_module("up1", decoder::conv_norm(c, 32, 3, decoder::After::relu));
    map_ = register_module("map", decoder::conv(32, 1, 1));
    decoder::fill_bias(map_, options.initial_logit);
  }
  ZoomNet() : ZoomNet(Options{}) {}

  /// What of the scene is read: everything, or all but the pixels when resampling.
  Scene input(const Scene& scene) const {
    Scene read = scene;
    if (options_.resample) read.image = at::Tensor();
    return read;
  }

  /// Makes the other scales. It uses the backbone's parameters and none of its own, so it stays outside of
  /// recomputation: recompute forward(views) only.
  Views prepare(const Scene& scene) const {
    decoder::check_pyramid("ZoomNet", scene.pyramid, options_.channels);
    return {.small = view(scene, 0.5), .middle = scene.pyramid, .large = view(scene, 1.5)};
  }

  Output forward(const Scene& scene) { return forward(prepare(scene)); }

  Output forward(const Views& views) {
    at::Tensor z;
    for (std::size_t i = 4; i-- > 0;) {
      const at::Tensor large = reduce(i, views.large[i]), middle = reduce(i, views.middle[i]);
      at::Tensor merged = merge_[i]->forward(large, middle, reduce(i, views.small[i]));
      if (z.defined()) merged = merged + layers::resize_like(z, merged);
      z = unit_[i]->forward(merged);
    }
    const at::Tensor half = up0_->forward(layers::scale(z, 2));
    const at::Tensor map = map_->forward(up1_->forward(layers::scale(half, 2)));
    return {.logits = loss::full_precision(map), .side = {}};
  }

  at::Tensor loss(const Output& output, const at::Tensor& target, double progress) const {
    return loss::uncertainty_aware(output.logits, target, progress);
  }

 private:
  at::Tensor reduce(std::size_t level, const at::Tensor& x) {
    return level < 3 ? reduce_[level]->forward(x) : aspp_->forward(x);
  }

  /// The pyramid of the picture at `factor` times its size.
  Pyramid view(const Scene& scene, double factor) const {
    if (options_.resample) {
      const auto side = [&](int64_t n) { return std::max<int64_t>(1, std::llround(factor * double(n))); };
      Pyramid out;
      for (const at::Tensor& x : scene.pyramid) out.push_back(layers::resize(x, side(x.size(2)), side(x.size(3))));
      return out;
    }
    TORCH_CHECK(scene.image.defined() && scene.encode != nullptr,
                "ZoomNet: scene.image and scene.encode are needed for the other scales; set options.resample to do "
                "without them");
    TORCH_CHECK(!recomputing(),
                "ZoomNet: scene.encode cannot run inside recomputation, where the backbone would get no gradient from "
                "it; recompute forward(prepare(scene)) instead");
    const auto side = [&](int64_t n) { return 32 * std::max<int64_t>(1, std::llround(factor * double(n) / 32)); };
    const at::Tensor& image = scene.image;
    Pyramid out = (*scene.encode)(layers::resize(image, side(image.size(2)), side(image.size(3))));
    decoder::check_pyramid("ZoomNet, scene.encode", out, options_.channels);
    return out;
  }

  Options options_;
  std::array<decoder::ConvNorm, 3> reduce_;
  std::shared_ptr<decoder::Aspp> aspp_;
  std::array<std::shared_ptr<decoder::ScaleIntegration>, 4> merge_;
  std::array<std::shared_ptr<decoder::MixedScaleUnit>, 4> unit_;
  decoder::ConvNorm up0_, up1_;
  decoder::Conv2d map_;
};

}  // namespace moecod::expert
