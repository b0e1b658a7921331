#pragma once
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cat.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/feature_options.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// Frequency bands of the features, separated by local means and looked at on their own scale.
///
///     fine = x - mean_3(x),   middle = mean_3(x) - mean_7(x),   coarse = mean_7(x)        (their sum is x)
///     y = x + fuse([3x3 on fine, 5x5 on middle, 7x7 on coarse, 1x1 on x])
///
/// mean_k is the average of k x k positions, at the border of those that exist. Each of the four convolutions makes a
/// quarter of the width; every convolution has batch normalisation and ReLU.
/// Shapes: x [M, C, H, W] -> same. Synchronises: never. Errors: c10::Error if C is not a multiple of 4.
/// Source: docs/sources.md, feature-level model.
template <class Layers = layers::Single>
class Frequency : public torch::nn::Module {
 public:
  using rows = rows::Images;
  template <class L>
  using rebind = Frequency<L>;
  using Options = FeatureOptions;

  explicit Frequency(const Options& options = {}, Layers layers = {}) {
    const int64_t width = quarter_of("expert::Frequency", options);
    const std::array<const char*, 4> names{"fine", "middle", "coarse", "whole"};
    const std::array<int64_t, 4> kernels{3, 5, 7, 1};
    for (std::size_t i = 0; i < bands_.size(); ++i)
      bands_[i] = register_module(names[i], std::make_shared<layers::ConvNorm<Layers>>(
                                                layers::Conv2dOptions::square(options.channels, width, kernels[i]),
                                                layers::After::relu, layers));
    fuse_ = register_module("fuse", std::make_shared<layers::ConvNorm<Layers>>(
                                        layers::Conv2dOptions::square(4 * width, options.channels, 1),
                                        layers::After::relu, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    const at::Tensor mean3 = mean(x, 3), mean7 = mean(x, 7);
    const std::array<at::Tensor, 4> parts{x - mean3, mean3 - mean7, mean7, x};
    std::vector<at::Tensor> bands;
    for (std::size_t i = 0; i < parts.size(); ++i) bands.push_back(bands_[i]->forward(parts[i], group));
    return x + fuse_->forward(at::cat(bands, 1), group);
  }

 private:
  static at::Tensor mean(const at::Tensor& x, int64_t kernel) {
    return at::avg_pool2d(x, {kernel, kernel}, {1, 1}, {kernel / 2, kernel / 2}, /*ceil_mode=*/false,
                          /*count_include_pad=*/false);
  }

  std::array<std::shared_ptr<layers::ConvNorm<Layers>>, 4> bands_;
  std::shared_ptr<layers::ConvNorm<Layers>> fuse_;
};

}  // namespace moecod::expert
