#pragma once
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/backbone/concept.hpp"
#include "moecod/core/pyramid.hpp"
#include "moecod/model/channels.hpp"
#include "moecod/moe/mixture.hpp"

namespace moecod {

/// Asks a model for its decisions beside the answer: `model(images, WithRouting{})`.
struct WithRouting {};

/// logits [B, 1, H, W] float32, before the sigmoid; the experts chosen [B, K] int32 and their weights [B, K].
struct RoutedLogits {
  at::Tensor logits, top_k_indices, top_k_weights;
};

/// Complete decoders as experts over one shared backbone, a router that reads its pyramid.
///
/// Shapes: images [B, 3, H, W], normalised, H and W multiples of the backbone's last stride. The mixture sees
/// Scene{images, pyramid} and its primary output is a map of logits [B, 1, H, W]. Synchronises: as its dispatcher.
/// Errors: c10::Error for images of another shape.
template <class BackbonePolicy, class MixturePolicy>
class ModelLevel : public torch::nn::Module {
  static_assert(backbone::policy<BackbonePolicy>,
                "moecod: ModelLevel's first argument must be a backbone (concept moecod::backbone::policy)");

 public:
  using backbone_type = BackbonePolicy;
  using mixture_type = MixturePolicy;
  static constexpr int64_t num_experts = MixturePolicy::num_experts;
  struct Options {
    typename BackbonePolicy::Options backbone;
    typename MixturePolicy::Options mixture;
    bool recompute = false;  ///< compute activations of backbone and experts anew in the backward pass
  };

  ModelLevel() : ModelLevel(Options()) {}
  explicit ModelLevel(Options options) {
    backbone = register_module("backbone", backbone::create<BackbonePolicy>(options.backbone));
    moecod::detail::set_channels(options.mixture.router, backbone->dims());
    moecod::detail::set_channels(options.mixture.experts, backbone->dims());
    options.mixture.recompute |= options.recompute;
    backbone->recompute = options.recompute;
    mixture = register_module("mixture", std::make_shared<MixturePolicy>(options.mixture));
    encode_ = [encoder = backbone.get()](const at::Tensor& images) { return (*encoder)(images); };
  }

  /// The images with the features of the shared backbone. `encode` points into this model.
  Scene look(const at::Tensor& images) { return {images, (*backbone)(images), &encode_}; }

  /// For training: everything that the mixture returns.
  auto forward(const at::Tensor& images) { return mixture->forward(look(images)); }

  at::Tensor operator()(const at::Tensor& images) { return forward(images).y; }

  RoutedLogits operator()(const at::Tensor& images, WithRouting) {
    auto out = forward(images);
    return {out.y, out.routing.experts, out.routing.weights};
  }

  std::shared_ptr<backbone::Backbone> backbone;
  std::shared_ptr<MixturePolicy> mixture;

 private:
  Encoder encode_;
};

}  // namespace moecod
