#pragma once
#include <ATen/ops/cat.h>
#include <torch/nn/module.h>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Where the partial decoder takes the deepest level's contribution to the finest from.
enum class Connection {
  neighbour,  ///< from the level next to it, already multiplied (SINet-V2's neighbour connection decoder)
  parallel    ///< from the deepest level itself (PraNet's parallel partial decoder)
};

/// Partial decoder: three levels multiplied and joined from the deepest to the finest, then one map.
///
///     a3 = CB(up x4) * x3
///     a2 = CB(up s) * CB(up x3) * x2        s = a3 (neighbour) or up x4 (parallel)
///     b3 = CB_2c[a3, CB(up x4)]
///     b2 = CB_3c[a2, CB_2c(up b3)]
///     map = conv1x1(CB_3c(b2))
///
/// CB is a 3x3 convolution with normalisation, CB_kc one to k * width channels; up is x2, corners aligned.
/// Shapes: x2, x3, x4 [n, width, H_i, W_i] -> [n, 1, H_2, W_2]. Synchronises: never.
/// Source: Wu et al. 2019 (CPD), arXiv 1904.08739; Fan et al. 2020 (PraNet), arXiv 2006.11392; Fan et al. 2021
/// (SINet-V2), arXiv 2102.10274.
class PartialDecoder : public torch::nn::Module {
 public:
  PartialDecoder(int64_t width, Connection connection, double initial_logit) : connection_(connection) {
    const auto add = [&](const char* name, int64_t in, int64_t out) {
      return register_module(name, conv_norm(in * width, out * width, 3, After::nothing));
    };
    four_to_three_ = add("four_to_three", 1, 1);
    deep_to_two_ = add("deep_to_two", 1, 1);
    three_to_two_ = add("three_to_two", 1, 1);
    four_beside_three_ = add("four_beside_three", 1, 1);
    three_beside_two_ = add("three_beside_two", 2, 2);
    join3_ = add("join3", 2, 2);
    join2_ = add("join2", 3, 3);
    last_ = add("last", 3, 3);
    map_ = register_module("map", conv(3 * width, 1, 1));
    fill_bias(map_, initial_logit);
  }

  at::Tensor forward(const at::Tensor& x2, const at::Tensor& x3, const at::Tensor& x4) {
    const at::Tensor x4_up = up(x4, x3);
    const at::Tensor a3 = four_to_three_->forward(x4_up) * x3;
    const at::Tensor& deep = connection_ == Connection::neighbour ? a3 : x4_up;
    const at::Tensor a2 = deep_to_two_->forward(up(deep, x2)) * three_to_two_->forward(up(x3, x2)) * x2;
    const at::Tensor b3 = join3_->forward(at::cat({a3, four_beside_three_->forward(x4_up)}, 1));
    const at::Tensor b2 = join2_->forward(at::cat({a2, three_beside_two_->forward(up(b3, x2))}, 1));
    return map_->forward(last_->forward(b2));
  }

 private:
  Connection connection_;
  ConvNorm four_to_three_, deep_to_two_, three_to_two_, four_beside_three_, three_beside_two_, join3_, join2_, last_;
  Conv2d map_;
};

}  // namespace moecod::expert::decoder
