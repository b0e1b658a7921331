#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/feature_options.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/layers/linear.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// Contrast with surroundings of three sizes, gated by channel.
///
///     c = fuse([3x3(x), 5x5(x), 7x7(x)]),   y = x + c * sigmoid(W2 relu(W1 mean(c)))
///
/// Each of the three convolutions makes a third of the width (the last what is left); every convolution has batch
/// normalisation and ReLU. The gate reads the mean over positions, C -> C / 4 -> C.
/// Shapes: x [M, C, H, W] -> same. Synchronises: never. Errors: c10::Error if C is not a multiple of 4.
/// Source: docs/sources.md, feature-level model; gate: Hu et al. 2018, arXiv 1709.01507.
template <class Layers = layers::Single>
class Contrast : public torch::nn::Module {
 public:
  using rows = rows::Images;
  template <class L>
  using rebind = Contrast<L>;
  using Options = FeatureOptions;

  explicit Contrast(const Options& options = {}, Layers layers = {}) {
    const int64_t channels = options.channels, hidden = quarter_of("expert::Contrast", options), third = channels / 3;
    const std::array<int64_t, 3> kernels{3, 5, 7}, widths{third, third, channels - 2 * third};
    for (std::size_t i = 0; i < scales_.size(); ++i)
      scales_[i] = register_module("scale" + std::to_string(kernels[i]),
                                   std::make_shared<layers::ConvNorm<Layers>>(
                                       layers::Conv2dOptions::square(channels, widths[i], kernels[i]),
                                       layers::After::relu, layers));
    fuse_ = register_module("fuse", std::make_shared<layers::ConvNorm<Layers>>(
                                        layers::Conv2dOptions::square(channels, channels, 1), layers::After::relu,
                                        layers));
    gate1_ = register_module("gate1", std::make_shared<layers::Linear<Layers>>(channels, hidden, true, layers));
    gate2_ = register_module("gate2", std::make_shared<layers::Linear<Layers>>(hidden, channels, true, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    std::vector<at::Tensor> scales;
    for (const auto& scale : scales_) scales.push_back(scale->forward(x, group));
    const at::Tensor contrast = fuse_->forward(at::cat(scales, 1), group);
    const at::Tensor hidden = at::relu(gate1_->forward(contrast.mean({-2, -1}), group));
    const at::Tensor gate = at::sigmoid(gate2_->forward(hidden, group));
    return x + contrast * gate.unsqueeze(2).unsqueeze(3);
  }

 private:
  std::array<std::shared_ptr<layers::ConvNorm<Layers>>, 3> scales_;
  std::shared_ptr<layers::ConvNorm<Layers>> fuse_;
  std::shared_ptr<layers::Linear<Layers>> gate1_, gate2_;
};

}  // namespace moecod::expert
