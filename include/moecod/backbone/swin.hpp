#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/index.h>
#include <ATen/ops/roll.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/backbone/drop_path.hpp"
#include "moecod/backbone/gelu_mlp.hpp"
#include "moecod/backbone/initial.hpp"
#include "moecod/layers/norm.hpp"

namespace moecod::backbone {

namespace swin {

/// What tells the variants apart.
struct Variant {
  int64_t dim = 96;  ///< of the first stage; each later stage has twice as many
  std::array<int64_t, 4> depths{2, 2, 6, 2};
  std::array<int64_t, 4> heads{3, 6, 12, 24};
};

inline constexpr int64_t window = 7;
inline constexpr int64_t area = window * window;

/// Which of the (2 window - 1)^2 relative places each pair of positions of a window has: [area * area], int64.
inline at::Tensor relative_places() {
  const at::Tensor at = at::arange(area, at::kLong);
  const at::Tensor row = at.div(window, "floor"), column = at.remainder(window);
  const at::Tensor rows = row.unsqueeze(1) - row + (window - 1), columns = column.unsqueeze(1) - column + (window - 1);
  return (rows * (2 * window - 1) + columns).flatten();
}

/// Along one side of `length` positions, a multiple of the window, shifted by `shift`: 0, 1 or 2 for the parts that did
/// not lie together before the shift. [length], float32.
inline at::Tensor parts_of_side(int64_t length, int64_t shift, const at::TensorOptions& options) {
  at::Tensor parts = at::zeros({length}, options);
  if (shift > 0) {
    parts.slice(0, length - window, length - shift).fill_(1);
    parts.slice(0, length - shift, length).fill_(2);
  }
  return parts;
}

/// Maps [B, H, W, C], H and W multiples of the window -> windows [B * count, area, C], and back.
inline at::Tensor to_windows(const at::Tensor& x) {
  const int64_t b = x.size(0), h = x.size(1), w = x.size(2), c = x.size(3);
  return x.reshape({b, h / window, window, w / window, window, c}).permute({0, 1, 3, 2, 4, 5}).reshape({-1, area, c});
}
inline at::Tensor from_windows(const at::Tensor& x, int64_t h, int64_t w) {
  const int64_t c = x.size(2);
  return x.reshape({-1, h / window, w / window, window, window, c}).permute({0, 1, 3, 2, 4, 5}).reshape({-1, h, w, c});
}

/// Attention inside each window, with a learned bias for each relative place. [windows, area, C] -> same.
class WindowAttention : public torch::nn::Module {
 public:
  WindowAttention(int64_t dim, int64_t heads) : heads_(heads) {
    table_ = register_parameter("relative_position_bias_table",
                                at::zeros({(2 * window - 1) * (2 * window - 1), heads}).normal_(0.0, 0.02));
    qkv_ = register_module("qkv", std::make_shared<layers::Linear<>>(dim, 3 * dim));
    proj_ = register_module("proj", std::make_shared<layers::Linear<>>(dim, dim));
  }

  /// `mask` [count, area, area], added to the scores of the count windows of each image; undefined for none.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& mask) {
    const int64_t windows = x.size(0), dim = x.size(2);
    const at::Tensor qkv = qkv_->forward(x).reshape({windows, area, 3, heads_, dim / heads_}).permute({2, 0, 3, 1, 4});
    // Not index_select, whose backward adds with atomics on CUDA.
    at::Tensor bias = at::index(table_, {places(x.device())}).reshape({1, area, area, heads_}).permute({0, 3, 1, 2});
    if (mask.defined()) {
      const int64_t count = mask.size(0);
      bias = (bias + mask.unsqueeze(1).to(bias.dtype())).unsqueeze(0)
                 .expand({windows / count, count, heads_, area, area})
                 .reshape({windows, heads_, area, area});
    }
    const at::Tensor y = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], bias.to(qkv.dtype()));
    return proj_->forward(y.transpose(1, 2).reshape({windows, area, dim}));
  }

 private:
  const at::Tensor& places(at::Device device) {
    if (!places_.defined() || places_.device() != device) places_ = relative_places().to(device);
    return places_;
  }

  int64_t heads_;
  at::Tensor table_;
  at::Tensor places_;  // no buffer: it follows from the window and is in no file
  std::shared_ptr<layers::Linear<>> qkv_, proj_;
};

/// x + attention in windows (in every second block shifted by half a window), then x + mlp. [B, H, W, C] -> same.
class Block : public torch::nn::Module {
 public:
  Block(int64_t dim, int64_t heads, bool shifted, double drop_rate) : shifted_(shifted), drop_rate_(drop_rate) {
    norm1_ = register_module("norm1", std::make_shared<layers::LayerNorm<>>(dim));
    attn_ = register_module("attn", std::make_shared<WindowAttention>(dim, heads));
    norm2_ = register_module("norm2", std::make_shared<layers::LayerNorm<>>(dim));
    mlp_ = register_module("mlp", std::make_shared<GeluMlp>(dim, 4 * dim));
  }

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor y = x + drop_path(attend(norm1_->forward(x)), drop_rate_, is_training());
    return y + drop_path(mlp_->forward(norm2_->forward(y)), drop_rate_, is_training());
  }

 private:
  at::Tensor attend(const at::Tensor& x) {
    const int64_t height = x.size(1), width = x.size(2);
    const int64_t down = shifted_ && height > window ? window / 2 : 0, right = shifted_ && width > window ? window / 2 : 0;
    at::Tensor y = down + right > 0 ? at::roll(x, {-down, -right}, {1, 2}) : x;
    const int64_t below = (window - height % window) % window, beside = (window - width % window) % window;
    if (below + beside > 0) y = at::constant_pad_nd(y, {0, 0, 0, beside, 0, below});
    const int64_t h = height + below, w = width + beside;
    at::Tensor mask;
    if (down + right > 0) mask = mask_for(h, w, down, right, x.options());
    y = from_windows(attn_->forward(to_windows(y), mask), h, w);
    if (below + beside > 0) y = y.slice(1, 0, height).slice(2, 0, width);
    return down + right > 0 ? at::roll(y, {down, right}, {1, 2}) : y;
  }

  /// -100 between positions of a window that the shift brought together, else 0: [count, area, area]. Kept for every
  /// size, since a training run has few, and a device graph (core/graphed_calls.hpp) reads it where it was.
  at::Tensor mask_for(int64_t h, int64_t w, int64_t down, int64_t right, const at::TensorOptions& options) {
    at::Tensor& mask = masks_[{h, w, down, right}];
    if (mask.defined() && mask.device() == options.device()) return mask;
    const at::NoGradGuard no_grad;
    const at::TensorOptions plain = at::TensorOptions(at::kFloat).device(options.device());
    const at::Tensor part = parts_of_side(h, down, plain).unsqueeze(1) * 3 + parts_of_side(w, right, plain);
    const at::Tensor windows = to_windows(part.reshape({1, h, w, 1})).squeeze(2);
    mask = at::where(windows.unsqueeze(1) == windows.unsqueeze(2), 0.0, -100.0).to(at::kFloat);
    return mask;
  }

  bool shifted_;
  double drop_rate_;
  std::map<std::array<int64_t, 4>, at::Tensor> masks_;
  std::shared_ptr<layers::LayerNorm<>> norm1_, norm2_;
  std::shared_ptr<WindowAttention> attn_;
  std::shared_ptr<GeluMlp> mlp_;
};

/// Joins 2x2 positions: norm over their 4 C channels, then a linear map to 2 C. [B, H, W, C] -> [B, H/2, W/2, 2 C].
class PatchMerging : public torch::nn::Module {
 public:
  explicit PatchMerging(int64_t dim)
      : norm_(register_module("norm", std::make_shared<layers::LayerNorm<>>(4 * dim))),
        reduction_(register_module("reduction", std::make_shared<layers::Linear<>>(4 * dim, 2 * dim, false))) {}

  at::Tensor forward(const at::Tensor& x) {
    const int64_t b = x.size(0), h = x.size(1), w = x.size(2), c = x.size(3);
    // The four come as (row, column) (0, 0), (1, 0), (0, 1), (1, 1).
    const at::Tensor four = x.reshape({b, h / 2, 2, w / 2, 2, c}).permute({0, 1, 3, 4, 2, 5}).flatten(3);
    return reduction_->forward(norm_->forward(four));
  }

 private:
  std::shared_ptr<layers::LayerNorm<>> norm_;
  std::shared_ptr<layers::Linear<>> reduction_;
};

/// Merging (but in the first stage), then blocks. [B, H, W, C] -> [B, H', W', C'].
class Stage : public torch::nn::Module {
 public:
  Stage(int64_t dim, int64_t heads, bool merges, const std::vector<double>& drop_rates) {
    if (merges) downsample_ = register_module("downsample", std::make_shared<PatchMerging>(dim / 2));
    const auto list = register_module("blocks", std::make_shared<torch::nn::Module>());
    for (std::size_t j = 0; j < drop_rates.size(); ++j)
      blocks_.push_back(list->register_module(
          std::to_string(j), std::make_shared<Block>(dim, heads, /*shifted=*/j % 2 == 1, drop_rates[j])));
  }

  /// With `recompute` the blocks' activations are computed anew in the backward pass.
  at::Tensor forward(const at::Tensor& x, bool recompute) {
    return run_blocks(blocks_, downsample_ ? downsample_->forward(x) : x, recompute);
  }

 private:
  std::shared_ptr<PatchMerging> downsample_;
  std::vector<std::shared_ptr<Block>> blocks_;
};

/// 4x4 patches, then norm. [B, 3, H, W] -> [B, H/4, W/4, C].
class PatchEmbed : public torch::nn::Module {
 public:
  explicit PatchEmbed(int64_t dim)
      : proj_(register_module("proj", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                          .in = 3, .out = dim, .kernel = {4, 4}, .stride = {4, 4}, .padding = {0, 0}}))),
        norm_(register_module("norm", std::make_shared<layers::LayerNorm<>>(dim))) {}

  at::Tensor forward(const at::Tensor& images) {
    return norm_->forward(proj_->forward(images).permute({0, 2, 3, 1}));
  }

 private:
  std::shared_ptr<layers::Conv2d<>> proj_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
};

}  // namespace swin

/// Swin transformer: attention in windows of 7x7 positions, shifted by 3 in every second block.
///
/// One model takes images of any size: maps that are no multiple of the window are padded with zeros at the bottom and
/// the right, and a side of at most 7 positions is not shifted. Both as timm does in a model made for that size, as long
/// as the last map has at least 7 positions a side (images of 224 pixels); timm shrinks its windows for smaller ones.
///
/// Shapes: images [B, 3, H, W], H and W multiples of 32 -> dims 96, 192, 384, 768 (base: 128 to 1024) at strides
/// 4, 8, 16, 32. The levels are the stages' outputs, without the last norm, as timm's features_only gives them, but
/// with the channels second. Parameters carry timm's names; the masks and indices that old files hold are ignored by
/// backbone::timm_keys. Initial values: linear weights and the biases of places normal with deviation 0.02, biases 0.
/// Recomputation agrees to rounding: LibTorch takes another attention kernel where a bias needs no gradient. One model
/// is for one thread at a time, since it keeps the masks of the last size.
/// Synchronises: on CUDA each layer's first forward uploads a table of places.
/// Errors: c10::Error for images of other shapes, or drop_path outside [0, 1).
/// Source: Liu et al. 2021, Swin transformer, arXiv 2103.14030.
/// Equal to timm 1.0.29 within 1e-5, of a level's largest value where that is above 1 (tests/reference).
class Swin : public Backbone {
 public:
  Swin(const swin::Variant& variant, const Options& options) : variant_(variant) {
    const auto rates = drop_path_rates("Swin", options.drop_path, variant.depths);
    patch_embed_ = register_module("patch_embed", std::make_shared<swin::PatchEmbed>(variant.dim));
    const auto list = register_module("layers", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < stages_.size(); ++i)
      stages_[i] = list->register_module(
          std::to_string(i), std::make_shared<swin::Stage>(variant.dim << i, variant.heads[i], i > 0, rates[i]));
    initialise_linear(*this);
  }

  std::vector<int64_t> dims() const override {
    return {variant_.dim, 2 * variant_.dim, 4 * variant_.dim, 8 * variant_.dim};
  }
  std::vector<int64_t> strides() const override { return {4, 8, 16, 32}; }

  Pyramid forward(const at::Tensor& images) override {
    check_images(images);
    Pyramid out;
    at::Tensor x = patch_embed_->forward(images);
    for (const auto& stage : stages_) {
      x = stage->forward(x, recompute);
      out.push_back(x.permute({0, 3, 1, 2}).contiguous());
    }
    return out;
  }

 private:
  swin::Variant variant_;
  std::shared_ptr<swin::PatchEmbed> patch_embed_;
  std::array<std::shared_ptr<swin::Stage>, 4> stages_;
};

struct SwinTiny : Swin {
  static constexpr const char* name = "swin_tiny_patch4_window7_224";
  using Options = backbone::Options;
  explicit SwinTiny(const Options& options = {}) : Swin({}, options) {}
};

struct SwinSmall : Swin {
  static constexpr const char* name = "swin_small_patch4_window7_224";
  using Options = backbone::Options;
  explicit SwinSmall(const Options& options = {}) : Swin({.depths = {2, 2, 18, 2}}, options) {}
};

struct SwinBase : Swin {
  static constexpr const char* name = "swin_base_patch4_window7_224";
  using Options = backbone::Options;
  explicit SwinBase(const Options& options = {})
      : Swin({.dim = 128, .depths = {2, 2, 18, 2}, .heads = {4, 8, 16, 32}}, options) {}
};

}  // namespace moecod::backbone
