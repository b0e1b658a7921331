#pragma once
#include <ATen/ops/relu.h>

#include <memory>

#include "moecod/layers/conv.hpp"
#include "moecod/layers/norm.hpp"

namespace moecod::layers {

/// What follows the normalisation of a ConvNorm.
enum class After { nothing, relu };

/// norm(conv(x)), and ReLU if asked for. Where the kernels of moecod::cuda run it (sorted images of stacked layers, or in
/// bfloat16 those of a single one), that takes three passes over the images: the convolution also sums for the
/// normalisation, which ReLU is part of. Shapes: x [M, in, H, W] -> [M, out, H', W']. Synchronises: as the layers.
template <class Layers>
at::Tensor conv_norm(Conv2d<Layers>& conv, BatchNorm2d<Layers>& norm, After after, const at::Tensor& x,
                     const typename Layers::Group& group) {
  if (conv.runs_grouped(x, group) && norm.runs_grouped(x, group)) {
    const auto [y, moments] = conv.forward_grouped(x, group, /*moments=*/norm.is_training());
    return norm.forward_grouped(y, group, moments, after == After::relu);
  }
  const at::Tensor y = norm.forward(conv.forward(x, group), group);
  return after == After::relu ? at::relu(y) : y;
}

/// Convolution without bias, batch normalisation and, if asked for, ReLU: the usual block of decoders.
///
///     y = relu(norm(conv(x)))     with After::relu, else norm(conv(x))
///
/// Shapes: x [M, in, H, W] -> [M, out, H', W']. `options.bias` is ignored: the normalisation has one.
/// Synchronises: as the layers.
template <class Layers = Single>
class ConvNorm : public torch::nn::Module {
 public:
  explicit ConvNorm(Conv2dOptions options, After after = After::relu, Layers layers = {}) : after_(after) {
    options.bias = false;
    conv = register_module("conv", std::make_shared<Conv2d<Layers>>(options, layers));
    norm = register_module("norm", std::make_shared<BatchNorm2d<Layers>>(options.out, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    return conv_norm(*conv, *norm, after_, x, group);
  }

  std::shared_ptr<Conv2d<Layers>> conv;
  std::shared_ptr<BatchNorm2d<Layers>> norm;

 private:
  After after_;
};

}  // namespace moecod::layers
