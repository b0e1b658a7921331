#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/backbone/conv_next_block.hpp"
#include "moecod/backbone/initial.hpp"

namespace moecod::backbone {

namespace edgenext {

/// What tells the variants apart, one value a stage.
struct Variant {
  std::array<int64_t, 4> dims{48, 96, 160, 304};
  std::array<int64_t, 4> depths{3, 3, 9, 3};
};

inline constexpr std::array<int64_t, 4> kernels{3, 5, 7, 9};
/// Channel groups of the last block of stages 1 to 3; the first stage has no such block.
inline constexpr std::array<int64_t, 4> scales{2, 2, 3, 4};
inline constexpr int64_t heads = 8;

/// Positions as sines and cosines of 32 frequencies a direction, then a 1x1 convolution.
///
/// With y in (0, 2 pi] the row's place from the top and f_k = 10000^(2 floor(k / 2) / 32), channel k of the first 32 is
/// sin(y / f_k) for even k and cos(y / f_k) for odd ones; the other 32 say the same of the column.
/// Shapes: -> [1, dim, H, W]. Synchronises: never. Source: DETR's encoding, as EdgeNeXt uses it.
class FourierPositions : public torch::nn::Module {
 public:
  explicit FourierPositions(int64_t dim)
      : projection_(register_module("token_projection", std::make_shared<layers::Conv2d<>>(
                                                            layers::Conv2dOptions::square(2 * frequencies, dim, 1)))) {}

  at::Tensor forward(int64_t height, int64_t width) {
    const at::Tensor rows = waves(height).reshape({1, height, 1, frequencies}).expand({1, height, width, frequencies});
    const at::Tensor columns = waves(width).reshape({1, 1, width, frequencies}).expand({1, height, width, frequencies});
    return projection_->forward(at::cat({rows, columns}, 3).permute({0, 3, 1, 2}).to(projection_->weight.dtype()));
  }

 private:
  static constexpr int64_t frequencies = 32;

  /// [length, frequencies]
  at::Tensor waves(int64_t length) const {
    const auto options = projection_->weight.options().dtype(at::kFloat).requires_grad(false);
    const at::Tensor place = at::arange(1, length + 1, options) / (double(length) + 1e-6) * 6.283185307179586;
    const at::Tensor octave = at::arange(frequencies / 2, options) * (2.0 / double(frequencies));
    const at::Tensor angle = place.unsqueeze(1) / at::pow(10000.0, octave);
    return at::stack({at::sin(angle), at::cos(angle)}, 2).flatten(1);
  }

  std::shared_ptr<layers::Conv2d<>> projection_;
};

/// Cross-covariance attention: channels attend to channels, so the cost is linear in positions.
///
///     softmax(temperature * q' k'^T) v,   q', k' of unit length over the positions, per head
///
/// Shapes: [B, N, C] -> same; temperature [heads, 1, 1]. Synchronises: never.
/// Source: El-Nouby et al. 2021, XCiT, arXiv 2106.09681.
class CrossCovariance : public torch::nn::Module {
 public:
  explicit CrossCovariance(int64_t dim) {
    temperature_ = register_parameter("temperature", at::ones({heads, 1, 1}));
    qkv_ = register_module("qkv", std::make_shared<layers::Linear<>>(dim, 3 * dim));
    proj_ = register_module("proj", std::make_shared<layers::Linear<>>(dim, dim));
  }

  at::Tensor forward(const at::Tensor& x) {
    const int64_t batch = x.size(0), positions = x.size(1), dim = x.size(2);
    const at::Tensor qkv =
        qkv_->forward(x).reshape({batch, positions, 3, heads, dim / heads}).permute({2, 0, 3, 4, 1});
    const at::Tensor scores = at::matmul(unit(qkv[0]), unit(qkv[1]).transpose(2, 3)) * temperature_;
    const at::Tensor y = at::matmul(at::softmax(scores, -1), qkv[2]);
    return proj_->forward(y.permute({0, 3, 1, 2}).reshape({batch, positions, dim}));
  }

 private:
  static at::Tensor unit(const at::Tensor& x) {
    return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true).clamp_min(1e-12);
  }

  at::Tensor temperature_;
  std::shared_ptr<layers::Linear<>> qkv_, proj_;
};

/// Split depthwise transpose attention: channel groups pass through depthwise convolutions, each adding the one before
/// (the last group passes as it is), then cross-covariance attention and a feed-forward layer. [B, C, H, W] -> same.
class SplitTransposeBlock : public torch::nn::Module {
 public:
  SplitTransposeBlock(int64_t dim, int64_t groups, bool positions, double drop_rate) : drop_rate_(drop_rate) {
    const int64_t width = (dim + groups - 1) / groups;
    const auto list = register_module("convs", std::make_shared<torch::nn::Module>());
    for (int64_t i = 0; i + 1 < groups; ++i)
      convs_.push_back(list->register_module(
          std::to_string(i), std::make_shared<layers::Conv2d<>>(
                                 layers::Conv2dOptions{.in = width, .out = width, .groups = width})));
    if (positions) positions_ = register_module("pos_embd", std::make_shared<FourierPositions>(dim));
    norm_xca_ = register_module("norm_xca", std::make_shared<layers::LayerNorm<>>(dim, next_eps));
    gamma_xca_ = register_parameter("gamma_xca", at::full({dim}, 1e-6));
    xca_ = register_module("xca", std::make_shared<CrossCovariance>(dim));
    norm_ = register_module("norm", std::make_shared<layers::LayerNorm<>>(dim, next_eps));
    mlp_ = register_module("mlp", std::make_shared<GeluMlp>(dim, 4 * dim));
    gamma_ = register_parameter("gamma", at::full({dim}, 1e-6));
  }

  at::Tensor forward(const at::Tensor& x) {
    const int64_t height = x.size(2), width = x.size(3);
    at::Tensor y = mix_scales(x).flatten(2).transpose(1, 2);
    if (positions_) y = y + positions_->forward(height, width).flatten(2).transpose(1, 2);
    y = y + drop_path(gamma_xca_ * xca_->forward(norm_xca_->forward(y)), drop_rate_, is_training());
    y = gamma_ * mlp_->forward(norm_->forward(y));
    return x + drop_path(y.transpose(1, 2).reshape(x.sizes()), drop_rate_, is_training());
  }

 private:
  at::Tensor mix_scales(const at::Tensor& x) {
    // 160 channels in 3 groups are 54, 54 and 52, so the group without a convolution is the smaller one.
    const std::vector<at::Tensor> groups = x.chunk(int64_t(convs_.size()) + 1, 1);
    std::vector<at::Tensor> out;
    for (std::size_t i = 0; i < convs_.size(); ++i)
      out.push_back(convs_[i]->forward(i == 0 ? groups[0] : out.back() + groups[i]));
    out.push_back(groups.back());
    return at::cat(out, 1);
  }

  double drop_rate_;
  std::vector<std::shared_ptr<layers::Conv2d<>>> convs_;
  std::shared_ptr<FourierPositions> positions_;
  std::shared_ptr<layers::LayerNorm<>> norm_xca_, norm_;
  at::Tensor gamma_xca_, gamma_;
  std::shared_ptr<CrossCovariance> xca_;
  std::shared_ptr<GeluMlp> mlp_;
};

/// Downsampling (but in the first stage), convolution blocks and, but in the first stage, one attention block last.
class Stage : public torch::nn::Module {
 public:
  Stage(const Variant& variant, std::size_t stage, const std::vector<double>& drop_rates) {
    const int64_t dim = variant.dims[stage];
    if (stage > 0)
      downsample_ = register_module("downsample", std::make_shared<PatchDownsample>(variant.dims[stage - 1], dim));
    const auto list = register_module("blocks", std::make_shared<torch::nn::Module>());
    for (std::size_t j = 0; j < drop_rates.size(); ++j) {
      const std::string name = std::to_string(j);
      if (stage > 0 && j + 1 == drop_rates.size()) {
        attention_.push_back(list->register_module(
            name, std::make_shared<SplitTransposeBlock>(dim, scales[stage], stage == 1, drop_rates[j])));
      } else {
        blocks_.push_back(
            list->register_module(name, std::make_shared<ConvNextBlock>(dim, kernels[stage], drop_rates[j])));
      }
    }
  }

  /// With `recompute` the blocks' activations are computed anew in the backward pass.
  at::Tensor forward(const at::Tensor& x, bool recompute) {
    const at::Tensor y = run_blocks(blocks_, downsample_ ? downsample_->forward(x) : x, recompute);
    return run_blocks(attention_, y, recompute);
  }

 private:
  std::shared_ptr<PatchDownsample> downsample_;
  std::vector<std::shared_ptr<ConvNextBlock>> blocks_;
  std::vector<std::shared_ptr<SplitTransposeBlock>> attention_;  // one, or in the first stage none
};

}  // namespace edgenext

/// EdgeNeXt: convolution blocks whose kernels grow with the stage, with attention over channels at each stage's end.
///
/// Shapes: images [B, 3, H, W], H and W multiples of 32 -> dims 48, 96, 160, 304 (base: 80, 160, 288, 584) at strides
/// 4, 8, 16, 32. The levels are the stages' outputs, without a norm, as timm's features_only gives them.
/// Parameters carry timm's names and initial values: weights normal with deviation 0.02, biases 0, gammas 1e-6.
/// Synchronises: never. Errors: c10::Error for images of other shapes, or drop_path outside [0, 1).
/// Source: Maaz et al. 2022, EdgeNeXt, arXiv 2206.10589.
/// Equal to timm 1.0.29 within 1e-5, of a level's largest value where that is above 1 (tests/reference).
class EdgeNext : public Backbone {
 public:
  EdgeNext(const edgenext::Variant& variant, const Options& options) : variant_(variant) {
    const auto rates = drop_path_rates("EdgeNext", options.drop_path, variant.depths);
    stem_ = register_module("stem", std::make_shared<PatchStem>(variant.dims[0]));
    const auto list = register_module("stages", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < stages_.size(); ++i)
      stages_[i] = list->register_module(std::to_string(i), std::make_shared<edgenext::Stage>(variant, i, rates[i]));
    initialise_normal(*this);
  }

  std::vector<int64_t> dims() const override { return {variant_.dims.begin(), variant_.dims.end()}; }
  std::vector<int64_t> strides() const override { return {4, 8, 16, 32}; }

  Pyramid forward(const at::Tensor& images) override {
    check_images(images);
    Pyramid out;
    at::Tensor x = stem_->forward(images);
    for (const auto& stage : stages_) {
      x = stage->forward(x, recompute);
      out.push_back(x.contiguous());
    }
    return out;
  }

 private:
  edgenext::Variant variant_;
  std::shared_ptr<PatchStem> stem_;
  std::array<std::shared_ptr<edgenext::Stage>, 4> stages_;
};

struct EdgeNextSmall : EdgeNext {
  static constexpr const char* name = "edgenext_small";
  using Options = backbone::Options;
  explicit EdgeNextSmall(const Options& options = {}) : EdgeNext({}, options) {}
};

struct EdgeNextBase : EdgeNext {
  static constexpr const char* name = "edgenext_base";
  using Options = backbone::Options;
  explicit EdgeNextBase(const Options& options = {}) : EdgeNext({.dims = {80, 160, 288, 584}}, options) {}
};

}  // namespace moecod::backbone
