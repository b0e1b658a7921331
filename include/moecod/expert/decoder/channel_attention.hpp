#pragma once
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <torch/nn/module.h>

#include <algorithm>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Residual channel-attention block.
///
///     z = conv3(relu(conv3(x)));   y = x + z * sigmoid(W2 relu(W1 mean(z)))
///
/// W1 reduces the channels sixteenfold, to at least 1.
/// Shapes: x [n, width, H, W] -> the same. Synchronises: never.
/// Source: Zhang et al. 2018 (RCAN), arXiv 1807.02758.
class ChannelAttention : public torch::nn::Module {
 public:
  explicit ChannelAttention(int64_t width) {
    const int64_t reduced = std::max<int64_t>(1, width / 16);
    body0_ = register_module("body0", conv(width, width, 3));
    body1_ = register_module("body1", conv(width, width, 3));
    down_ = register_module("down", conv(width, reduced, 1));
    up_ = register_module("up", conv(reduced, width, 1));
  }

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor z = body1_->forward(at::relu(body0_->forward(x)));
    const at::Tensor mean = z.mean({2, 3}, /*keepdim=*/true);
    return x + z * at::sigmoid(up_->forward(at::relu(down_->forward(mean))));
  }

 private:
  Conv2d body0_, body1_, down_, up_;
};

}  // namespace moecod::expert::decoder
