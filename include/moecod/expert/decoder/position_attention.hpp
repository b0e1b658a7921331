#pragma once
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <algorithm>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Position self-attention with a weight that starts at 0.
///
///     y_i = x_i + gamma sum_j softmax_j(<q_i, k_j>) v_j,    q, k, v = 1x1 convolutions of x
///
/// q and k have an eighth of the channels, at least 1. Plain products and softmax, since the memory-efficient kernel's
/// backward adds in no fixed order; the memory is n (H W)^2, so use it on coarse levels.
/// Shapes: x [n, width, H, W] -> the same. Synchronises: never.
/// Source: Fu et al. 2019 (DANet), arXiv 1809.02983.
class PositionAttention : public torch::nn::Module {
 public:
  explicit PositionAttention(int64_t width) {
    const int64_t narrow = std::max<int64_t>(1, width / 8);
    query_ = register_module("query", conv(width, narrow, 1));
    // A bias of the keys would add the same to all scores of a query, which the softmax takes off again.
    key_ = register_module("key", std::make_shared<layers::Conv2d<>>(
                                      layers::Conv2dOptions::square(width, narrow, 1, 1, /*bias=*/false)));
    value_ = register_module("value", conv(width, width, 1));
    gamma = register_parameter("gamma", at::zeros({1}));
  }

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor q = query_->forward(x).flatten(2), k = key_->forward(x).flatten(2);
    const at::Tensor v = value_->forward(x).flatten(2);
    const at::Tensor attention = at::softmax(at::matmul(q.transpose(1, 2), k), -1);
    const at::Tensor seen = at::matmul(v, attention.transpose(1, 2)).view_as(x);
    return x + gamma.to(seen.scalar_type()) * seen;  // a float32 gamma would make all that follows float32
  }

  at::Tensor gamma;

 private:
  Conv2d query_, key_, value_;
};

}  // namespace moecod::expert::decoder
