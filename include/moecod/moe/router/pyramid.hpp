#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/fft_fftfreq.h>
#include <ATen/ops/fft_rfft2.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/view_as_real.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "moecod/core/pyramid.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/pool.hpp"
#include "moecod/layers/resize.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::router {

/// The root mean squares of two frequency bands of each map.
///
///     low^2  = sum over frequencies f with |f| <= cutoff of |F(f)|^2 / (H W)^2,   low^2 + high^2 = mean of x^2
/// F is the two-dimensional Fourier transform, f = (row, column) in cycles a sample, each in [-1/2, 1/2): both signs
/// of the row frequency count, and the columns that the real transform leaves out count by their mirror images.
///
/// Shapes: x [B, C, H, W] -> [B, 2, C], low first; float32, or float64 for float64. Synchronises: never.
inline at::Tensor band_rms(const at::Tensor& x, double cutoff) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const int64_t height = x.size(2), width = x.size(3), columns = width / 2 + 1;
  const at::Tensor spectrum = at::view_as_real(at::fft_rfft2(layers::at_least_float(x)));
  const auto options = spectrum.options();
  const auto area = static_cast<double>(height * width);
  const at::Tensor power = spectrum.square().sum(-1) / (area * area);
  // Every column but the first, and the middle one of an even width, stands for its mirror image too.
  at::Tensor count = at::full({columns}, 2.0, options);
  count.slice(0, 0, 1).fill_(1.0);
  if (width % 2 == 0) count.slice(0, columns - 1, columns).fill_(1.0);
  const at::Tensor row = at::fft_fftfreq(height, 1.0, options).unsqueeze(1);
  const at::Tensor column = at::arange(columns, options) / static_cast<double>(width);
  const at::Tensor low = (row.square() + column.square() <= cutoff * cutoff).to(spectrum.scalar_type());
  const at::Tensor masks = at::stack({low, 1.0 - low}).mul(count).unsqueeze(1);
  // The root has no gradient at 0.
  return (power.unsqueeze(1) * masks).sum({-2, -1}).add(1e-12).sqrt();
}

namespace pyramid_router {

/// A square convolution with normalisation and ReLU that keeps the size.
inline std::shared_ptr<layers::ConvNorm<>> conv_block(int64_t in, int64_t out, int64_t kernel, int64_t dilation = 1) {
  return std::make_shared<layers::ConvNorm<>>(layers::Conv2dOptions::square(in, out, kernel, dilation));
}

/// What every branch reads: `top` [B, 2 width, H, W], the last level reduced, and `fine` [B, C, 2 H, 2 W], the level
/// before it as the backbone made it. Each branch returns [B, width].
struct Input {
  at::Tensor top, fine;
};

/// Texture at three scales: 3x3 with dilations 1, 2, 4, joined by 1x1, averaged.
class Texture : public torch::nn::Module {
 public:
  Texture(int64_t, int64_t width) {
    for (std::size_t i = 0; i < scales_.size(); ++i)
      scales_[i] = register_module("scale" + std::to_string(i),
                                   conv_block(2 * width, width, 3, int64_t{1} << i));
    fusion_ = register_module("fusion", conv_block(3 * width, width, 1));
  }

  at::Tensor forward(const Input& in) {
    std::vector<at::Tensor> scales;
    for (const auto& scale : scales_) scales.push_back(scale->forward(in.top));
    return fusion_->forward(at::cat(scales, 1)).mean({-2, -1});
  }

 private:
  std::array<std::shared_ptr<layers::ConvNorm<>>, 3> scales_;
  std::shared_ptr<layers::ConvNorm<>> fusion_;
};

/// Edges of the finer level: each of `width` mixed channels through two perpendicular 3x3 derivatives of its own,
/// which start as Sobel kernels (even channels: along columns and rows, odd ones: along the diagonals), then 3x3,
/// averaged.
class Edges : public torch::nn::Module {
 public:
  Edges(int64_t fine, int64_t width) {
    reduce_ = register_module("reduce", conv_block(fine, width, 1));
    direction_ = register_module("direction", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                                  .in = 2 * width, .out = 2 * width, .groups = 2 * width, .bias = false}));
    fusion_ = register_module("fusion", conv_block(2 * width, width, 3));
    const torch::NoGradGuard no_grad;
    const at::Tensor sobel = at::tensor({-1., 0., 1., -2., 0., 2., -1., 0., 1.,   //
                                         -1., -2., -1., 0., 0., 0., 1., 2., 1.,   //
                                         -2., -1., 0., -1., 0., 1., 0., 1., 2.,   //
                                         0., -1., -2., 1., 0., -1., 2., 1., 0.});
    direction_->weight.copy_(sobel.view({4, 1, 3, 3}).div(8.0).repeat({width / 2, 1, 1, 1}));
  }

  at::Tensor forward(const Input& in) {
    // Each channel twice, since convolutions of more than one output a group are slow on GPUs.
    const at::Tensor x = reduce_->forward(in.fine);
    return fusion_->forward(direction_->forward(at::stack({x, x}, 2).flatten(1, 2))).mean({-2, -1});
  }

 private:
  std::shared_ptr<layers::ConvNorm<>> reduce_, fusion_;
  std::shared_ptr<layers::Conv2d<>> direction_;
};

/// The whole image at a glance: averages over 1, 2x2, 3x3 and 6x6 regions beside the map, joined by 3x3, averaged.
class Context : public torch::nn::Module {
 public:
  Context(int64_t, int64_t width) {
    for (std::size_t i = 0; i < regions_.size(); ++i)
      regions_[i] = register_module("region" + std::to_string(i), std::make_shared<layers::Conv2d<>>(
                                        layers::Conv2dOptions::square(2 * width, width / 4, 1)));
    fusion_ = register_module("fusion", conv_block(3 * width, width, 3));
  }

  at::Tensor forward(const Input& in) {
    std::vector<at::Tensor> maps{in.top};
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      // GELU: narrow routers have few values here, and ReLU could leave all of them without a gradient.
      const at::Tensor pooled = layers::average_pool(in.top, cells[i], cells[i]);
      maps.push_back(layers::resize_like(at::gelu(regions_[i]->forward(pooled)), in.top));
    }
    return fusion_->forward(at::cat(maps, 1)).mean({-2, -1});
  }

 private:
  static constexpr std::array<int64_t, 4> cells{1, 2, 3, 6};
  std::array<std::shared_ptr<layers::Conv2d<>>, 4> regions_;
  std::shared_ptr<layers::ConvNorm<>> fusion_;
};

/// How much of each channel is coarse and how much fine: root mean squares of the bands below and above a quarter of
/// the sampling frequency.
class Frequency : public torch::nn::Module {
 public:
  Frequency(int64_t, int64_t width) {
    reduce_ = register_module("reduce", std::make_shared<layers::Conv2d<>>(
                                            layers::Conv2dOptions::square(2 * width, width / 2, 1)));
    fusion_ = register_module("fusion", std::make_shared<layers::Linear<>>(width, width));
  }

  at::Tensor forward(const Input& in) {
    return at::relu(fusion_->forward(band_rms(reduce_->forward(in.top), 0.25).flatten(1)));
  }

 private:
  std::shared_ptr<layers::Conv2d<>> reduce_;
  std::shared_ptr<layers::Linear<>> fusion_;
};

/// Stands for a branch that is left out.
struct Absent {};

}  // namespace pyramid_router

/// Router of the model level: decides for an image from its pyramid.
///
///     v = layer norm of [texture, edges, context, frequency], each [B, width]
///     logits = 2 sigmoid(confidence(v)) mlp(v)
/// The confidence is an inverse temperature between 0 and 2: an image that the router cannot place gets flat weights.
/// Branches left out by the template arguments have no parameters and cost nothing.
///
/// Shapes: Pyramid or Scene of B images -> logits [B, experts], float32 (float64 from a float64 router). The last
/// layers and the Fourier transform run in float32 under autocast too. The image itself is not read. About 8.2M
/// parameters for the channels of PVTv2-B2.
/// Synchronises: never. Decides for each image alone: in evaluation the rest of the batch does not matter.
/// Errors: c10::Error when width is not a positive multiple of 4, or the pyramid has other channels than said.
/// Source: docs/sources.md, model-level router; pyramid pooling: Zhao et al. 2017, arXiv 1612.01105.
template <bool Texture = true, bool Edges = true, bool Context = true, bool Frequency = true>
class Pyramid : public torch::nn::Module {
  static_assert(Texture || Edges || Context || Frequency, "router::Pyramid: at least one branch must stay");

 public:
  using policy_kind = kind::router;
  using granularity = rows::Images;

  struct Options {
    int64_t experts = 2;            ///< set by the mixture
    std::vector<int64_t> channels;  ///< of the pyramid's levels, finest first; set by the model
    int64_t width = 256;            ///< features a branch, a multiple of 4; everything scales with it
  };

  explicit Pyramid(const Options& options) : channels_(options.channels) {
    const int64_t width = options.width;
    TORCH_CHECK(width >= 4 && width % 4 == 0, "router::Pyramid: width must be a positive multiple of 4, got ", width);
    TORCH_CHECK(options.experts >= 1, "router::Pyramid: experts must be at least 1, got ", options.experts);
    TORCH_CHECK(channels_.size() >= 2, "router::Pyramid: channels must name at least two levels, got ",
                channels_.size());
    if constexpr (reads_top)
      stem_ = register_module("stem", pyramid_router::conv_block(channels_.back(), 2 * width, 1));
    const int64_t fine = channels_[channels_.size() - 2];
    add("texture", texture_, fine, width);
    add("edges", edges_, fine, width);
    add("context", context_, fine, width);
    add("frequency", frequency_, fine, width);
    const int64_t joined = width * (int{Texture} + int{Edges} + int{Context} + int{Frequency});
    norm_ = register_module("norm", std::make_shared<layers::LayerNorm<>>(joined));
    fc1_ = register_module("fc1", std::make_shared<layers::Linear<>>(joined, 2 * width));
    fc2_ = register_module("fc2", std::make_shared<layers::Linear<>>(2 * width, width));
    out_ = register_module("out", std::make_shared<layers::Linear<>>(width, options.experts));
    confidence1_ = register_module("confidence1", std::make_shared<layers::Linear<>>(joined, width));
    confidence2_ = register_module("confidence2", std::make_shared<layers::Linear<>>(width, 1));
  }

  at::Tensor forward(const moecod::Pyramid& pyramid) {
    TORCH_CHECK(pyramid.size() == channels_.size(), "router::Pyramid: expected ", channels_.size(), " levels, got ",
                pyramid.size());
    for (std::size_t i = 0; i < pyramid.size(); ++i)
      TORCH_CHECK(pyramid[i].dim() == 4 && pyramid[i].size(1) == channels_[i], "router::Pyramid: level ", i + 1,
                  " must be [B, ", channels_[i], ", H, W], got ", pyramid[i].sizes());
    pyramid_router::Input in{{}, pyramid[pyramid.size() - 2]};
    if constexpr (reads_top) in.top = stem_->forward(pyramid.back());
    std::vector<at::Tensor> parts;
    read(texture_, in, parts);
    read(edges_, in, parts);
    read(context_, in, parts);
    read(frequency_, in, parts);
    const at::Tensor v = norm_->forward(at::cat(parts, 1));
    const at::Tensor features = at::relu(fc2_->forward(at::relu(fc1_->forward(v))));
    const at::Tensor doubt = at::relu(confidence1_->forward(v));
    return 2.0 * at::sigmoid(layers::linear_in_float(*confidence2_, doubt)) * layers::linear_in_float(*out_, features);
  }

  at::Tensor forward(const Scene& scene) { return forward(scene.pyramid); }

 private:
  /// Edges alone read the finer level only.
  static constexpr bool reads_top = Texture || Context || Frequency;

  template <bool Present, class Branch>
  using branch = std::conditional_t<Present, std::shared_ptr<Branch>, pyramid_router::Absent>;

  template <class Branch>
  void add(const std::string& name, std::shared_ptr<Branch>& branch, int64_t fine, int64_t width) {
    branch = register_module(name, std::make_shared<Branch>(fine, width));
  }
  void add(const std::string&, pyramid_router::Absent, int64_t, int64_t) {}

  template <class Branch>
  static void read(const std::shared_ptr<Branch>& branch, const pyramid_router::Input& in,
                   std::vector<at::Tensor>& out) {
    out.push_back(layers::at_least_float(branch->forward(in)));
  }
  static void read(pyramid_router::Absent, const pyramid_router::Input&, std::vector<at::Tensor>&) {}

  std::vector<int64_t> channels_;
  [[no_unique_address]] branch<reads_top, layers::ConvNorm<>> stem_;
  [[no_unique_address]] branch<Texture, pyramid_router::Texture> texture_;
  [[no_unique_address]] branch<Edges, pyramid_router::Edges> edges_;
  [[no_unique_address]] branch<Context, pyramid_router::Context> context_;
  [[no_unique_address]] branch<Frequency, pyramid_router::Frequency> frequency_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
  std::shared_ptr<layers::Linear<>> fc1_, fc2_, out_, confidence1_, confidence2_;
};

}  // namespace moecod::router
