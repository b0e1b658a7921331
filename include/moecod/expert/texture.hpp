#pragma once
#include <ATen/ops/cat.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/feature_options.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// Texture at four scales: each quarter of the width a 1x1 convolution, then 3x3 with dilation 1, 2, 4, 8.
///
///     y = x + fuse([quarter_1(x), quarter_2(x), quarter_4(x), quarter_8(x)])
///
/// Every convolution has batch normalisation and ReLU. Shapes: x [M, C, H, W] -> same. Synchronises: never.
/// Errors: c10::Error if C is not a multiple of 4. Source: docs/sources.md, feature-level model.
template <class Layers = layers::Single>
class Texture : public torch::nn::Module {
 public:
  using rows = rows::Images;
  template <class L>
  using rebind = Texture<L>;
  using Options = FeatureOptions;

  explicit Texture(const Options& options = {}, Layers layers = {}) {
    const int64_t width = quarter_of("expert::Texture", options);
    for (std::size_t i = 0; i < dilations.size(); ++i) {
      const std::string name = "scale" + std::to_string(dilations[i]);
      reduce_[i] = register_module(name + "_reduce", std::make_shared<layers::ConvNorm<Layers>>(
                                       layers::Conv2dOptions::square(options.channels, width, 1),
                                       layers::After::relu, layers));
      scale_[i] = register_module(name, std::make_shared<layers::ConvNorm<Layers>>(
                                            layers::Conv2dOptions::square(width, width, 3, dilations[i]),
                                            layers::After::relu, layers));
    }
    fuse_ = register_module("fuse", std::make_shared<layers::ConvNorm<Layers>>(
                                        layers::Conv2dOptions::square(4 * width, options.channels, 1),
                                        layers::After::relu, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    std::vector<at::Tensor> scales;
    for (std::size_t i = 0; i < dilations.size(); ++i)
      scales.push_back(scale_[i]->forward(reduce_[i]->forward(x, group), group));
    return x + fuse_->forward(at::cat(scales, 1), group);
  }

 private:
  static constexpr std::array<int64_t, 4> dilations{1, 2, 4, 8};
  std::array<std::shared_ptr<layers::ConvNorm<Layers>>, 4> reduce_, scale_;
  std::shared_ptr<layers::ConvNorm<Layers>> fuse_;
};

}  // namespace moecod::expert
