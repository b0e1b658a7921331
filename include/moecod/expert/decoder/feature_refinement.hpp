#pragma once
#include <torch/nn/module.h>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// The next coarser level made anew from a searched finer one, as a correction of what the backbone gave:
///
///     y = coarse + CB1(CBR3(CBR3 stride 2 (CBR1(fine))))
///
/// It takes the place of a second copy of a backbone stage, at a small part of its cost: the original runs ResNet's
/// layers 3 and 4 again, 17 million parameters and more.
/// Shapes: fine [n, fine_channels, H, W], coarse [n, coarse_channels, H/2, W/2] rounded up -> as coarse.
/// Synchronises: never. Source: the copies of Li et al. 2021 (UJSC), arXiv 2104.02628; the substitute is moecod's own.
class FeatureRefinement : public torch::nn::Module {
 public:
  FeatureRefinement(int64_t fine_channels, int64_t coarse_channels, int64_t width) {
    first_ = register_module("first", conv_norm(fine_channels, width, 1, After::relu));
    down_ = register_module("down", std::make_shared<layers::ConvNorm<>>(
                                        layers::Conv2dOptions{.in = width, .out = width, .stride = {2, 2}}));
    middle_ = register_module("middle", conv_norm(width, width, 3, After::relu));
    last_ = register_module("last", conv_norm(width, coarse_channels, 1, After::nothing));
  }

  at::Tensor forward(const at::Tensor& fine, const at::Tensor& coarse) {
    return coarse + last_->forward(middle_->forward(down_->forward(first_->forward(fine))));
  }

 private:
  ConvNorm first_, down_, middle_, last_;
};

}  // namespace moecod::expert::decoder
