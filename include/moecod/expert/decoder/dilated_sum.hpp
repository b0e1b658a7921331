#pragma once
#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// The sum of parallel 3x3 convolutions of several dilations, with biases and without normalisation.
///
/// Shapes: x [n, in, H, W] -> [n, out, H, W]. Synchronises: never.
/// Source: Chen et al. 2016 (DeepLab), arXiv 1606.00915; Li et al. 2021 (UJSC), arXiv 2104.02628.
class DilatedSum : public torch::nn::Module {
 public:
  DilatedSum(int64_t in, int64_t out, const std::vector<int64_t>& dilations) {
    for (const int64_t dilation : dilations)
      convs_.push_back(register_module("dilation" + std::to_string(dilation), conv(in, out, 3, dilation)));
  }

  at::Tensor forward(const at::Tensor& x) {
    at::Tensor y = convs_.front()->forward(x);
    for (std::size_t i = 1; i < convs_.size(); ++i) y = y + convs_[i]->forward(x);
    return y;
  }

  /// Makes the biases sum to `value` in every channel.
  void fill_total_bias(double value) {
    for (const Conv2d& layer : convs_) fill_bias(layer, value / static_cast<double>(convs_.size()));
  }

 private:
  std::vector<Conv2d> convs_;
};

}  // namespace moecod::expert::decoder
