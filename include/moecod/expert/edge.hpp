#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/feature_options.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// Edges of the features: derivatives of each channel, mixed.
///
///     y = x + fuse([1x1(rows(x)), 1x1(columns(x)), 1x1(curvature(x)), 1x1(x)])
///
/// rows, columns and curvature are depthwise 3x3 convolutions that start as the Sobel kernels and the Laplacian and
/// then learn, each channel its own, so that no two channels are copies of each other. Each 1x1 convolution makes a
/// quarter of the width and has batch normalisation and ReLU, as `fuse`.
/// Shapes: x [M, C, H, W] -> same. Synchronises: never. Errors: c10::Error if C is not a multiple of 4.
/// Source: docs/sources.md, feature-level model.
template <class Layers = layers::Single>
class Edge : public torch::nn::Module {
 public:
  using rows = rows::Images;
  template <class L>
  using rebind = Edge<L>;
  using Options = FeatureOptions;

  explicit Edge(const Options& options = {}, Layers layers = {}) {
    const int64_t width = quarter_of("expert::Edge", options);
    const std::array<const char*, 3> names{"rows", "columns", "curvature"};
    const auto mix = [&](const std::string& name, int64_t in, int64_t out) {
      return register_module(name, std::make_shared<layers::ConvNorm<Layers>>(
                                       layers::Conv2dOptions::square(in, out, 1), layers::After::relu, layers));
    };
    for (std::size_t i = 0; i < names.size(); ++i) {
      derivatives_[i] = register_module(
          names[i], std::make_shared<layers::Conv2d<Layers>>(
                        layers::Conv2dOptions{.in = options.channels, .out = options.channels,
                                              .groups = options.channels, .bias = false},
                        layers));
      mixes_[i] = mix(std::string(names[i]) + "_mix", options.channels, width);
    }
    whole_ = mix("whole", options.channels, width);
    fuse_ = mix("fuse", 4 * width, options.channels);
    if constexpr (!Layers::stacked) {
      const torch::NoGradGuard no_grad;
      const at::Tensor kernels = at::tensor({-1., -2., -1., 0., 0., 0., 1., 2., 1.,   //
                                             -1., 0., 1., -2., 0., 2., -1., 0., 1.,   //
                                             0., 1., 0., 1., -4., 1., 0., 1., 0.})
                                     .view({3, 1, 1, 3, 3})
                                     .div(8.0);
      for (std::size_t i = 0; i < names.size(); ++i)
        derivatives_[i]->weight.copy_(kernels[int64_t(i)].expand_as(derivatives_[i]->weight));
    }
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    std::vector<at::Tensor> parts;
    for (std::size_t i = 0; i < derivatives_.size(); ++i)
      parts.push_back(mixes_[i]->forward(derivatives_[i]->forward(x, group), group));
    parts.push_back(whole_->forward(x, group));
    return x + fuse_->forward(at::cat(parts, 1), group);
  }

 private:
  std::array<std::shared_ptr<layers::Conv2d<Layers>>, 3> derivatives_;
  std::array<std::shared_ptr<layers::ConvNorm<Layers>>, 3> mixes_;
  std::shared_ptr<layers::ConvNorm<Layers>> whole_, fuse_;
};

}  // namespace moecod::expert
