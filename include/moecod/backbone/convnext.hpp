#pragma once
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/backbone/conv_next_block.hpp"
#include "moecod/backbone/initial.hpp"

namespace moecod::backbone {

namespace convnext {

/// What tells the variants apart, one value a stage.
struct Variant {
  std::array<int64_t, 4> dims{96, 192, 384, 768};
  std::array<int64_t, 4> depths{3, 3, 9, 3};
};

/// Downsampling (but in the first stage), then blocks. [B, in, H, W] -> [B, out, H', W'].
class Stage : public torch::nn::Module {
 public:
  Stage(const Variant& variant, std::size_t stage, const std::vector<double>& drop_rates) {
    if (stage > 0)
      downsample_ = register_module(
          "downsample", std::make_shared<PatchDownsample>(variant.dims[stage - 1], variant.dims[stage]));
    const auto list = register_module("blocks", std::make_shared<torch::nn::Module>());
    for (std::size_t j = 0; j < drop_rates.size(); ++j)
      blocks_.push_back(list->register_module(
          std::to_string(j), std::make_shared<ConvNextBlock>(variant.dims[stage], 7, drop_rates[j])));
  }

  /// With `recompute` the blocks' activations are computed anew in the backward pass.
  at::Tensor forward(const at::Tensor& x, bool recompute) {
    return run_blocks(blocks_, downsample_ ? downsample_->forward(x) : x, recompute);
  }

 private:
  std::shared_ptr<PatchDownsample> downsample_;
  std::vector<std::shared_ptr<ConvNextBlock>> blocks_;
};

}  // namespace convnext

/// ConvNeXt: four stages of depthwise 7x7 convolutions with pointwise feed-forward layers.
///
/// Shapes: images [B, 3, H, W], H and W multiples of 32 -> dims 96, 192, 384, 768 (base: 128 to 1024) at strides
/// 4, 8, 16, 32. The levels are the stages' outputs, without a norm, as timm's features_only gives them.
/// Parameters carry timm's names and initial values: weights normal with deviation 0.02, biases 0, gamma 1e-6.
/// Synchronises: never. Errors: c10::Error for images of other shapes, or drop_path outside [0, 1).
/// Source: Liu et al. 2022, A ConvNet for the 2020s, arXiv 2201.03545.
/// Equal to timm 1.0.29 within 1e-5, of a level's largest value where that is above 1 (tests/reference).
class ConvNext : public Backbone {
 public:
  ConvNext(const convnext::Variant& variant, const Options& options) : variant_(variant) {
    const auto rates = drop_path_rates("ConvNext", options.drop_path, variant.depths);
    stem_ = register_module("stem", std::make_shared<PatchStem>(variant.dims[0]));
    const auto list = register_module("stages", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < stages_.size(); ++i)
      stages_[i] = list->register_module(std::to_string(i), std::make_shared<convnext::Stage>(variant, i, rates[i]));
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
  convnext::Variant variant_;
  std::shared_ptr<PatchStem> stem_;
  std::array<std::shared_ptr<convnext::Stage>, 4> stages_;
};

struct ConvNextTiny : ConvNext {
  static constexpr const char* name = "convnext_tiny";
  using Options = backbone::Options;
  explicit ConvNextTiny(const Options& options = {}) : ConvNext({}, options) {}
};

struct ConvNextSmall : ConvNext {
  static constexpr const char* name = "convnext_small";
  using Options = backbone::Options;
  explicit ConvNextSmall(const Options& options = {}) : ConvNext({.depths = {3, 3, 27, 3}}, options) {}
};

struct ConvNextBase : ConvNext {
  static constexpr const char* name = "convnext_base";
  using Options = backbone::Options;
  explicit ConvNextBase(const Options& options = {})
      : ConvNext({.dims = {128, 256, 512, 1024}, .depths = {3, 3, 27, 3}}, options) {}
};

}  // namespace moecod::backbone
