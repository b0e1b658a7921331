#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/relu.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Group-reversal attention: looks again where a guiding map sees nothing, at three granularities.
///
///     y = 1 - sigmoid(guide)
///     for g in 1, c/8, c:   x <- x + relu(conv3([x_1, y, x_2, y, ..., x_g, y]));   y <- y + conv3(x)
///     map = y + guide
///
/// x_i are g chunks of x's c channels; the middle g is the largest divisor of c not above c/8. The last conv3's bias
/// starts at minus the first y of a guide of `initial_logit`, so that at first the map repeats such a guide.
///
/// Shapes: x [n, c, H, W], guide [n, 1, H, W] -> [n, 1, H, W]. Synchronises: never.
/// Source: Fan et al. 2021 (SINet-V2), arXiv 2102.10274.
class GroupReversal : public torch::nn::Module {
 public:
  GroupReversal(int64_t width, double initial_logit) {
    int64_t middle = std::max<int64_t>(1, width / 8);
    while (width % middle != 0) --middle;
    groups_ = {1, middle, width};
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      mixes_[i] = register_module("mix" + std::to_string(i), conv(width + groups_[i], width, 3));
      scores_[i] = register_module("score" + std::to_string(i), conv(width, 1, 3));
    }
    fill_bias(scores_.back(), -1.0 / (1.0 + std::exp(initial_logit)));
  }

  at::Tensor forward(at::Tensor x, const at::Tensor& guide) {
    at::Tensor y = reverse(guide);
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      x = x + at::relu(mixes_[i]->forward(with_map_after_each_chunk(x, y, groups_[i])));
      y = y + scores_[i]->forward(x);
    }
    return y + guide;
  }

 private:
  static at::Tensor with_map_after_each_chunk(const at::Tensor& x, const at::Tensor& y, int64_t groups) {
    const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
    const at::Tensor chunks = x.reshape({n, groups, c / groups, h, w});
    const at::Tensor maps = y.to(x.scalar_type()).unsqueeze(1).expand({n, groups, 1, h, w});
    return at::cat({chunks, maps}, 2).reshape({n, c + groups, h, w});
  }

  std::array<int64_t, 3> groups_{};
  std::array<Conv2d, 3> mixes_, scores_;
};

}  // namespace moecod::expert::decoder
