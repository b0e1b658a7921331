#pragma once
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/backbone/drop_path.hpp"
#include "moecod/core/recompute.hpp"
#include "moecod/layers/conv.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/layers/norm.hpp"
#include "moecod/layers/pool.hpp"

namespace moecod::backbone {

namespace pvt_v2 {

/// What tells the variants apart, one value a stage.
struct Variant {
  std::array<int64_t, 4> dims{64, 128, 320, 512};
  std::array<int64_t, 4> depths{3, 4, 6, 3};
  std::array<int64_t, 4> mlp_ratios{8, 8, 4, 4};
  /// Linear attention: keys and values from a 7x7 average pool in every stage, not from a strided convolution.
  bool linear = false;
};

inline constexpr std::array<int64_t, 4> heads{1, 2, 5, 8};
inline constexpr std::array<int64_t, 4> reductions{8, 4, 2, 1};

/// The blocks and the stage's last norm use 1e-6; the norms after convolutions (patches, reduced keys) 1e-5.
inline constexpr double block_eps = 1e-6, convolution_eps = 1e-5;

/// Tokens [B, H W, C] as a map [B, C, H, W].
inline at::Tensor to_map(const at::Tensor& tokens, int64_t height, int64_t width) {
  return tokens.transpose(1, 2).reshape({tokens.size(0), tokens.size(2), height, width});
}

/// A map [B, C, H, W] as tokens [B, H W, C].
inline at::Tensor to_tokens(const at::Tensor& map) { return map.flatten(2).transpose(1, 2); }

/// Overlapping patches: convolution, then layer norm over the channels. [B, in, H, W] -> [B, out, H/s, W/s].
class PatchEmbed : public torch::nn::Module {
 public:
  PatchEmbed(int64_t in, int64_t out, int64_t kernel, int64_t stride)
      : proj_(register_module(
            "proj", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                        .in = in, .out = out, .kernel = {kernel, kernel}, .stride = {stride, stride}}))),
        norm_(register_module("norm", std::make_shared<layers::LayerNorm<>>(out, convolution_eps))) {}

  at::Tensor forward(const at::Tensor& x) {
    return norm_->forward(proj_->forward(x).permute({0, 2, 3, 1})).permute({0, 3, 1, 2});
  }

 private:
  std::shared_ptr<layers::Conv2d<>> proj_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
};

/// Attention whose keys and values come from fewer positions (spatial reduction). [B, H W, C] -> same.
class Attention : public torch::nn::Module {
 public:
  Attention(int64_t dim, int64_t heads, int64_t reduction, bool linear) : heads_(heads), linear_(linear) {
    q_ = register_module("q", std::make_shared<layers::Linear<>>(dim, dim));
    kv_ = register_module("kv", std::make_shared<layers::Linear<>>(dim, 2 * dim));
    proj_ = register_module("proj", std::make_shared<layers::Linear<>>(dim, dim));
    if (!linear && reduction == 1) return;
    const int64_t k = linear ? 1 : reduction;
    sr_ = register_module("sr", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                    .in = dim, .out = dim, .kernel = {k, k}, .stride = {k, k}, .padding = {0, 0}}));
    norm_ = register_module("norm", std::make_shared<layers::LayerNorm<>>(dim, convolution_eps));
  }

  at::Tensor forward(const at::Tensor& x, int64_t height, int64_t width) {
    const int64_t batch = x.size(0), dim = x.size(2);
    const at::Tensor q = q_->forward(x).reshape({batch, -1, heads_, dim / heads_}).transpose(1, 2);
    at::Tensor kv = kv_->forward(reduce(x, height, width));
    kv = kv.reshape({batch, -1, 2, heads_, dim / heads_}).permute({2, 0, 3, 1, 4});
    const at::Tensor y = at::scaled_dot_product_attention(q, kv[0], kv[1]);
    return proj_->forward(y.transpose(1, 2).reshape({batch, -1, dim}));
  }

 private:
  at::Tensor reduce(const at::Tensor& x, int64_t height, int64_t width) {
    if (!sr_) return x;
    const at::Tensor map = to_map(x, height, width);
    if (!linear_) return norm_->forward(to_tokens(sr_->forward(map)));
    return at::gelu(norm_->forward(to_tokens(sr_->forward(layers::average_pool(map, 7, 7)))));
  }

  int64_t heads_;
  bool linear_;
  std::shared_ptr<layers::Linear<>> q_, kv_, proj_;
  std::shared_ptr<layers::Conv2d<>> sr_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
};

/// Feed-forward layer with a depthwise 3x3 convolution, which also tells positions apart. [B, H W, C] -> same.
class ConvMlp : public torch::nn::Module {
 public:
  ConvMlp(int64_t dim, int64_t hidden, bool linear) : linear_(linear) {
    fc1_ = register_module("fc1", std::make_shared<layers::Linear<>>(dim, hidden));
    dwconv_ = register_module("dwconv", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                            .in = hidden, .out = hidden, .groups = hidden}));
    fc2_ = register_module("fc2", std::make_shared<layers::Linear<>>(hidden, dim));
  }

  at::Tensor forward(const at::Tensor& x, int64_t height, int64_t width) {
    at::Tensor map = to_map(fc1_->forward(x), height, width);
    if (linear_) map = at::relu(map);
    return fc2_->forward(to_tokens(dwconv_->forward_gelu(map)));
  }

 private:
  bool linear_;
  std::shared_ptr<layers::Linear<>> fc1_, fc2_;
  std::shared_ptr<layers::Conv2d<>> dwconv_;
};

/// x + attention(norm(x)), then x + mlp(norm(x)), each branch under drop path. [B, H W, C] -> same.
class Block : public torch::nn::Module {
 public:
  Block(const Variant& variant, std::size_t stage, double drop_rate) : drop_rate_(drop_rate) {
    const int64_t dim = variant.dims[stage];
    norm1_ = register_module("norm1", std::make_shared<layers::LayerNorm<>>(dim, block_eps));
    attn_ = register_module("attn",
                            std::make_shared<Attention>(dim, heads[stage], reductions[stage], variant.linear));
    norm2_ = register_module("norm2", std::make_shared<layers::LayerNorm<>>(dim, block_eps));
    mlp_ = register_module("mlp", std::make_shared<ConvMlp>(dim, dim * variant.mlp_ratios[stage], variant.linear));
  }

  at::Tensor forward(const at::Tensor& x, int64_t height, int64_t width) {
    const at::Tensor y =
        x + drop_path(attn_->forward(norm1_->forward(x), height, width), drop_rate_, is_training());
    return y + drop_path(mlp_->forward(norm2_->forward(y), height, width), drop_rate_, is_training());
  }

 private:
  double drop_rate_;
  std::shared_ptr<layers::LayerNorm<>> norm1_, norm2_;
  std::shared_ptr<Attention> attn_;
  std::shared_ptr<ConvMlp> mlp_;
};

/// Downsampling (but in the first stage, whose patches come from the image), blocks, norm.
class Stage : public torch::nn::Module {
 public:
  Stage(const Variant& variant, std::size_t stage, const std::vector<double>& drop_rates) {
    if (stage > 0)
      downsample_ = register_module(
          "downsample", std::make_shared<PatchEmbed>(variant.dims[stage - 1], variant.dims[stage], 3, 2));
    const auto list = register_module("blocks", std::make_shared<torch::nn::Module>());
    for (std::size_t j = 0; j < drop_rates.size(); ++j)
      blocks_.push_back(
          list->register_module(std::to_string(j), std::make_shared<Block>(variant, stage, drop_rates[j])));
    norm_ = register_module("norm", std::make_shared<layers::LayerNorm<>>(variant.dims[stage], block_eps));
  }

  /// With `recompute` the blocks' activations are computed anew in the backward pass.
  at::Tensor forward(const at::Tensor& x, bool recompute) {
    const at::Tensor map = downsample_ ? downsample_->forward(x) : x;
    const int64_t height = map.size(2), width = map.size(3);
    const at::Tensor tokens = run_blocks(blocks_, to_tokens(map), recompute, height, width);
    return to_map(norm_->forward(tokens), height, width);  // channels last, as convolutions on GPUs like it
  }

 private:
  std::shared_ptr<PatchEmbed> downsample_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
};

}  // namespace pvt_v2

/// Pyramid vision transformer v2: four stages of overlapping patches and transformer blocks whose attention reads
/// spatially reduced keys and values.
///
/// Shapes: images [B, 3, H, W], H and W multiples of 32 -> dims 64, 128, 320, 512 (B0: 32, 64, 160, 256) at strides
/// 4, 8, 16, 32. The levels are the outputs of the stages after their norms, as timm's features_only gives them.
/// Parameters carry timm's names (backbone::timm_key reads other names) and initial values: linear weights normal with
/// deviation 0.02, convolutions normal with variance 2 / fan out, biases 0.
/// Synchronises: on CUDA in bfloat16 the first time that a batch has so many images (layers::offsets_of). Errors: c10::Error for
/// images of other shapes, or drop_path outside [0, 1).
/// Source: Wang et al. 2022, PVT v2, arXiv 2106.13797.
/// Equal to timm 1.0.29 within 1e-5, of a level's largest value where that is above 1 (tests/reference).
class PvtV2 : public Backbone {
 public:
  PvtV2(const pvt_v2::Variant& variant, const Options& options) : variant_(variant) {
    const auto rates = drop_path_rates("PvtV2", options.drop_path, variant.depths);
    patch_embed_ = register_module("patch_embed", std::make_shared<pvt_v2::PatchEmbed>(3, variant.dims[0], 7, 4));
    const auto list = register_module("stages", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < stages_.size(); ++i)
      stages_[i] = list->register_module(std::to_string(i), std::make_shared<pvt_v2::Stage>(variant, i, rates[i]));
    initialise();
  }

  std::vector<int64_t> dims() const override { return {variant_.dims.begin(), variant_.dims.end()}; }
  std::vector<int64_t> strides() const override { return {4, 8, 16, 32}; }

  Pyramid forward(const at::Tensor& images) override {
    check_images(images);
    Pyramid out;
    at::Tensor x = patch_embed_->forward(images);
    for (const auto& stage : stages_) out.push_back(x = stage->forward(x, recompute));
    return out;
  }

 private:
  void initialise() {
    torch::NoGradGuard no_grad;
    for (const auto& module : modules(/*include_self=*/false)) {
      if (auto* linear = dynamic_cast<layers::Linear<>*>(module.get())) {
        // timm truncates at +-2, a hundred deviations away.
        linear->weight.normal_(0.0, 0.02);
        linear->bias.zero_();
      } else if (auto* conv = dynamic_cast<layers::Conv2d<>*>(module.get())) {
        const auto& o = conv->options();
        const auto fan_out = static_cast<double>(o.kernel[0] * o.kernel[1] * o.out / o.groups);
        conv->weight.normal_(0.0, std::sqrt(2.0 / fan_out));
        conv->bias.zero_();
      }
    }
  }

  pvt_v2::Variant variant_;
  std::shared_ptr<pvt_v2::PatchEmbed> patch_embed_;
  std::array<std::shared_ptr<pvt_v2::Stage>, 4> stages_;
};

struct PvtV2B0 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b0";
  using Options = backbone::Options;
  explicit PvtV2B0(const Options& options = {})
      : PvtV2({.dims = {32, 64, 160, 256}, .depths = {2, 2, 2, 2}}, options) {}
};

struct PvtV2B1 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b1";
  using Options = backbone::Options;
  explicit PvtV2B1(const Options& options = {}) : PvtV2({.depths = {2, 2, 2, 2}}, options) {}
};

struct PvtV2B2 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b2";
  using Options = backbone::Options;
  explicit PvtV2B2(const Options& options = {}) : PvtV2({}, options) {}
};

struct PvtV2B2Li : PvtV2 {
  static constexpr const char* name = "pvt_v2_b2_li";
  using Options = backbone::Options;
  explicit PvtV2B2Li(const Options& options = {}) : PvtV2({.linear = true}, options) {}
};

struct PvtV2B3 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b3";
  using Options = backbone::Options;
  explicit PvtV2B3(const Options& options = {}) : PvtV2({.depths = {3, 4, 18, 3}}, options) {}
};

struct PvtV2B4 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b4";
  using Options = backbone::Options;
  explicit PvtV2B4(const Options& options = {}) : PvtV2({.depths = {3, 8, 27, 3}}, options) {}
};

struct PvtV2B5 : PvtV2 {
  static constexpr const char* name = "pvt_v2_b5";
  using Options = backbone::Options;
  explicit PvtV2B5(const Options& options = {})
      : PvtV2({.depths = {3, 6, 40, 3}, .mlp_ratios = {4, 4, 4, 4}}, options) {}
};

}  // namespace moecod::backbone
