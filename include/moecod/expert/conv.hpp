#pragma once
#include "moecod/layers/conv_norm.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

struct ConvOptions {
  int64_t channels = 64;  ///< C; set by the model
};

/// The plain convolutional expert: twice (3x3 convolution without bias, batch normalisation, ReLU).
///
/// Shapes: x [M, C, H, W] -> [M, C, H, W]. Synchronises: as layers::Conv2d and layers::BatchNorm2d.
template <class Layers = layers::Single>
class Conv : public torch::nn::Module {
 public:
  using rows = rows::Images;
  template <class L>
  using rebind = Conv<L>;
  using Options = ConvOptions;

  explicit Conv(const Options& options = {}, Layers layers = {}) {
    const auto conv = layers::Conv2dOptions::square(options.channels, options.channels, 3, 1, /*bias=*/false);
    conv1_ = register_module("conv1", std::make_shared<layers::Conv2d<Layers>>(conv, layers));
    norm1_ = register_module("norm1", std::make_shared<layers::BatchNorm2d<Layers>>(options.channels, layers));
    conv2_ = register_module("conv2", std::make_shared<layers::Conv2d<Layers>>(conv, layers));
    norm2_ = register_module("norm2", std::make_shared<layers::BatchNorm2d<Layers>>(options.channels, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    const at::Tensor h = layers::conv_norm(*conv1_, *norm1_, layers::After::relu, x, group);
    return layers::conv_norm(*conv2_, *norm2_, layers::After::relu, h, group);
  }

 private:
  std::shared_ptr<layers::Conv2d<Layers>> conv1_, conv2_;
  std::shared_ptr<layers::BatchNorm2d<Layers>> norm1_, norm2_;
};

}  // namespace moecod::expert
