#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/gelu.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

#include "moecod/layers/linear.hpp"

namespace moecod::backbone {

/// fc2(gelu(fc1(x))) over the last dimension, the feed-forward layer of ConvNeXt, EdgeNeXt and Swin.
/// Shapes: [..., dim] -> same. Synchronises: as layers::Linear.
class GeluMlp : public torch::nn::Module {
 public:
  GeluMlp(int64_t dim, int64_t hidden)
      : fc1_(register_module("fc1", std::make_shared<layers::Linear<>>(dim, hidden))),
        fc2_(register_module("fc2", std::make_shared<layers::Linear<>>(hidden, dim))) {}

  at::Tensor forward(const at::Tensor& x) { return fc2_->forward(at::gelu(fc1_->forward(x))); }

 private:
  std::shared_ptr<layers::Linear<>> fc1_, fc2_;
};

}  // namespace moecod::backbone
