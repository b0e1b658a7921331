#pragma once
#include <torch/nn/module.h>

#include "moecod/layers/conv.hpp"
#include "moecod/layers/linear.hpp"

namespace moecod::backbone {

/// timm's initial values of linear maps in ConvNeXt, EdgeNeXt and Swin: weights normal with deviation 0.02 (timm truncates
/// at +-2, a hundred deviations away), biases 0.
inline void initialise_linear(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (const auto& part : module.modules(/*include_self=*/false)) {
    auto* linear = dynamic_cast<layers::Linear<>*>(part.get());
    if (linear == nullptr) continue;
    linear->weight.normal_(0.0, 0.02);
    if (linear->bias.defined()) linear->bias.zero_();
  }
}

/// The same for linear maps and convolutions: ConvNeXt and EdgeNeXt.
inline void initialise_normal(torch::nn::Module& module) {
  initialise_linear(module);
  torch::NoGradGuard no_grad;
  for (const auto& part : module.modules(/*include_self=*/false)) {
    auto* conv = dynamic_cast<layers::Conv2d<>*>(part.get());
    if (conv == nullptr) continue;
    conv->weight.normal_(0.0, 0.02);
    if (conv->bias.defined()) conv->bias.zero_();
  }
}

}  // namespace moecod::backbone
