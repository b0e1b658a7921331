#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

#include "moecod/backbone/drop_path.hpp"
#include "moecod/backbone/gelu_mlp.hpp"
#include "moecod/backbone/patch.hpp"

namespace moecod::backbone {

/// The block of ConvNeXt, which EdgeNeXt shares:
///
///     x + drop_path(gamma * mlp(norm(depthwise(x))))
///
/// Shapes: [B, C, H, W] -> same; gamma [C], initially 1e-6. Synchronises: never.
class ConvNextBlock : public torch::nn::Module {
 public:
  ConvNextBlock(int64_t dim, int64_t kernel, double drop_rate) : drop_rate_(drop_rate) {
    gamma_ = register_parameter("gamma", at::full({dim}, 1e-6));
    conv_dw_ = register_module("conv_dw", std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions{
                                              .in = dim, .out = dim, .kernel = {kernel, kernel}, .groups = dim}));
    norm_ = register_module("norm", std::make_shared<layers::LayerNorm<>>(dim, next_eps));
    mlp_ = register_module("mlp", std::make_shared<GeluMlp>(dim, 4 * dim));
  }

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor y = gamma_ * mlp_->forward(norm_->forward(conv_dw_->forward(x).permute({0, 2, 3, 1})));
    return x + drop_path(y.permute({0, 3, 1, 2}), drop_rate_, is_training());
  }

 private:
  double drop_rate_;
  at::Tensor gamma_;
  std::shared_ptr<layers::Conv2d<>> conv_dw_;
  std::shared_ptr<layers::LayerNorm<>> norm_;
  std::shared_ptr<GeluMlp> mlp_;
};

}  // namespace moecod::backbone
