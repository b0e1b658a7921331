#pragma once
#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Reverse attention: a correction of a guiding map, read from the features where the map sees nothing.
///
///     z   = CB1(x * (1 - sigmoid(guide)))
///     z   = relu(CB_k(z))                   `depth` times
///     map = CB_last(z) + guide              to one channel
///
/// Shapes: x [n, in, H, W], guide [n, 1, H, W] -> [n, 1, H, W]. Synchronises: never.
/// Source: Fan et al. 2020 (PraNet), arXiv 2006.11392.
class ReverseAttention : public torch::nn::Module {
 public:
  struct Options {
    int64_t in = 512, width = 256;
    int64_t kernel = 5, depth = 3;  ///< of the convolutions with ReLU
    int64_t last_kernel = 1;        ///< of the convolution to one channel
  };

  explicit ReverseAttention(const Options& options) {
    first_ = register_module("first", conv_norm(options.in, options.width, 1, After::nothing));
    for (int64_t i = 0; i < options.depth; ++i)
      middle_.push_back(register_module("middle" + std::to_string(i),
                                        conv_norm(options.width, options.width, options.kernel, After::relu)));
    last_ = register_module("last", conv_norm(options.width, 1, options.last_kernel, After::nothing));
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& guide) {
    at::Tensor z = first_->forward(x * reverse(guide).to(x.scalar_type()));
    for (const ConvNorm& layer : middle_) z = layer->forward(z);
    return last_->forward(z) + guide;
  }

 private:
  ConvNorm first_, last_;
  std::vector<ConvNorm> middle_;
};

}  // namespace moecod::expert::decoder
