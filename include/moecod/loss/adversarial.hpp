#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros_like.h>
#include <torch/nn/module.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/layers/conv.hpp"
#include "moecod/loss/bce.hpp"

namespace moecod::loss {

/// Tells predicted maps from ground truth, patch by patch: a picture and a map in, a map of logits out.
///
/// Five 3x3 convolutions with strides 2, 1, 2, 1, 2 and LeakyReLU(0.2) between them.
/// Shapes: image [n, 3, H, W]; map of probabilities [n, 1, H, W] -> logits [n, 1, H/8, W/8], rounded up.
/// Synchronises: never. Errors: c10::Error on other shapes.
/// Source: Li et al. 2021 (UJSC), arXiv 2104.02628.
class ConfidenceDiscriminator : public torch::nn::Module {
 public:
  struct Options {
    int64_t width = 64;  ///< channels of the inner layers, >= 1
  };

  explicit ConfidenceDiscriminator(const Options& options) {
    const std::array<int64_t, 5> strides{2, 1, 2, 1, 2};
    for (std::size_t i = 0; i < strides.size(); ++i) {
      layers::Conv2dOptions sizes{.in = i == 0 ? 4 : options.width,
                                  .out = i + 1 == strides.size() ? 1 : options.width,
                                  .stride = {strides[i], strides[i]}};
      convs_.push_back(register_module("conv" + std::to_string(i), std::make_shared<layers::Conv2d<>>(sizes)));
    }
  }
  ConfidenceDiscriminator() : ConfidenceDiscriminator(Options{}) {}

  at::Tensor forward(const at::Tensor& image, const at::Tensor& map) {
    check_map("ConfidenceDiscriminator", "map", map);
    TORCH_CHECK(image.dim() == 4 && image.size(0) == map.size(0) && image.size(1) == 3 &&
                    image.size(2) == map.size(2) && image.size(3) == map.size(3),
                "loss::ConfidenceDiscriminator: image must be [n, 3, H, W] for map ", map.sizes(), ", got ",
                image.sizes());
    at::Tensor x = at::cat({image, map.to(image.scalar_type())}, 1);
    for (std::size_t i = 0; i < convs_.size(); ++i)
      x = convs_[i]->forward(i == 0 ? x : at::leaky_relu(x, 0.2));
    return x;
  }

 private:
  std::vector<std::shared_ptr<layers::Conv2d<>>> convs_;
};

/// What the discriminator learns from: predictions are 0, ground truth is 1, half the cross-entropy of each.
///
/// The prediction is detached, so this gives gradients to the discriminator only.
/// Shapes: image [n, 3, H, W]; logits and target in [0, 1], [n, 1, H, W] -> [n]. Synchronises: never.
/// Errors: c10::Error on other shapes.
inline at::Tensor discriminator(ConfidenceDiscriminator& judge, const at::Tensor& image, const at::Tensor& logits,
                                const at::Tensor& target) {
  check_pair("discriminator", logits, target);
  const at::Tensor fake = judge.forward(image, at::sigmoid(full_precision(logits.detach())));
  const at::Tensor real = judge.forward(image, target);
  return 0.5 * (bce(fake, at::zeros_like(fake)) + bce(real, at::ones_like(real)));
}

/// What the map's maker learns from the discriminator: its prediction should pass for ground truth,
/// bce(D(image, sigmoid(logits)), 1). UJSC adds it with weight 0.1.
///
/// The gradient goes through the discriminator to the logits; the discriminator's own parameters get none, so its
/// optimizer never sees this term. (Published programs pass detached maps, which gives no gradient at all.)
/// Shapes: image [n, 3, H, W]; logits [n, 1, H, W] -> [n]. Synchronises: never. Errors: c10::Error on other shapes.
inline at::Tensor generator(ConfidenceDiscriminator& judge, const at::Tensor& image, const at::Tensor& logits) {
  check_map("generator", "logits", logits);
  // Whether a parameter takes part in the graph is settled when the operation runs, so it is enough to switch them
  // off for the duration of the forward pass.
  struct Frozen {
    explicit Frozen(torch::nn::Module& module) {
      for (at::Tensor& parameter : module.parameters())
        if (parameter.requires_grad()) parameters.push_back(parameter.requires_grad_(false));
    }
    ~Frozen() {
      for (at::Tensor& parameter : parameters) parameter.requires_grad_(true);
    }
    Frozen(const Frozen&) = delete;
    Frozen& operator=(const Frozen&) = delete;
    std::vector<at::Tensor> parameters;
  };
  const Frozen frozen(judge);
  const at::Tensor confidence = judge.forward(image, at::sigmoid(full_precision(logits)));
  return bce(confidence, at::ones_like(confidence));
}

}  // namespace moecod::loss
