#pragma once
#include <torch/nn/module.h>

#include "moecod/layers/conv.hpp"
#include "moecod/layers/linear.hpp"

namespace moecod::backbone {

/// timm's initial values of ConvNeXt, EdgeNeXt and, for its linear maps, Swin: weights of convolutions and linear maps
/// normal with deviation 0.02 (timm truncates at +-2, a hundred deviations away), biases 0.
inline void initialise_normal(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (const auto& part : module.modules(/*include_self=*/false)) {
    const auto fill = [](at::Tensor& weight, at::Tensor& bias) {
      weight.normal_(0.0, 0.02);
      if (bias.defined()) bias.zero_();
    };
    if (auto* linear = dynamic_cast<layers::Linear<>*>(part.get())) fill(linear->weight, linear->bias);
    if (auto* conv = dynamic_cast<layers::Conv2d<>*>(part.get())) fill(conv->weight, conv->bias);
  }
}

}  // namespace moecod::backbone
