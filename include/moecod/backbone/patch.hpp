#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>

#include "moecod/layers/conv.hpp"
#include "moecod/layers/norm.hpp"

namespace moecod::backbone {

/// The norms of ConvNeXt and EdgeNeXt.
inline constexpr double next_eps = 1e-6;

/// Layer norm over the channels of a map, [B, C, H, W] -> same. Synchronises: never.
inline at::Tensor norm_channels(layers::LayerNorm<>& norm, const at::Tensor& x) {
  return norm.forward(x.permute({0, 2, 3, 1})).permute({0, 3, 1, 2});
}

/// The stem of ConvNeXt and EdgeNeXt: 4x4 patches, then norm; timm's stem.0 and stem.1. [B, 3, H, W] -> [B, C, H/4, W/4].
class PatchStem : public torch::nn::Module {
 public:
  explicit PatchStem(int64_t channels)
      : conv_(register_module("0", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                       .in = 3, .out = channels, .kernel = {4, 4}, .stride = {4, 4}, .padding = {0, 0}}))),
        norm_(register_module("1", std::make_shared<layers::LayerNorm<>>(channels, next_eps))) {}

  at::Tensor forward(const at::Tensor& images) { return norm_channels(*norm_, conv_->forward(images)); }

 private:
  std::shared_ptr<layers::Conv2d<>> conv_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
};

/// Between stages of ConvNeXt and EdgeNeXt: norm, then 2x2 patches; timm's downsample.0 and downsample.1.
/// [B, in, H, W] -> [B, out, H/2, W/2].
class PatchDownsample : public torch::nn::Module {
 public:
  PatchDownsample(int64_t in, int64_t out)
      : norm_(register_module("0", std::make_shared<layers::LayerNorm<>>(in, next_eps))),
        conv_(register_module("1", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                       .in = in, .out = out, .kernel = {2, 2}, .stride = {2, 2}, .padding = {0, 0}}))) {}

  at::Tensor forward(const at::Tensor& x) { return conv_->forward(norm_channels(*norm_, x)); }

 private:
  std::shared_ptr<layers::LayerNorm<>> norm_;
  std::shared_ptr<layers::Conv2d<>> conv_;
};

}  // namespace moecod::backbone
