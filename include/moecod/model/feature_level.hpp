#pragma once
#include <torch/nn/module.h>

#include <concepts>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "moecod/backbone/concept.hpp"
#include "moecod/core/pyramid.hpp"
#include "moecod/model/channels.hpp"
#include "moecod/model/feature_head.hpp"
#include "moecod/moe/mixture.hpp"

namespace moecod {

/// What can stand as a FeatureLevel's head: from the levels behind the mixtures to maps, and from maps to a loss.
///
///     Options, default-constructible; where it has `channels`, they are set to the levels' channels
///     forward(pyramid, height, width) -> FeatureMaps      height and width of the image
///     loss(maps, target) const -> [B]                     target [B, 1, H, W] in [0, 1]
template <class H>
concept feature_head =
    std::derived_from<H, torch::nn::Module> && std::default_initializable<typename H::Options> &&
    std::constructible_from<H, const typename H::Options&> &&
    requires(H& head, const H& constant, const Pyramid& pyramid, int64_t n, const FeatureMaps& maps, const at::Tensor& t) {
      { head.forward(pyramid, n, n) } -> std::same_as<FeatureMaps>;
      { constant.loss(maps, t) } -> std::same_as<at::Tensor>;
    };

/// What a feature-level model returns: its maps and each level's decision, finest level first; with a policy that has
/// one, the sum of the levels' auxiliary losses.
template <bool HasLoss>
struct FeatureOutput : std::conditional_t<HasLoss, detail::WithAuxiliaryLoss, detail::WithoutAuxiliaryLoss> {
  FeatureMaps maps;
  std::vector<Routing> routing;
};

/// Small experts on each level of a backbone's pyramid, and a head that makes a map of the object.
///
///     P = backbone(image);   Q_i = mixture_i(P_i);   maps = head(Q, H, W)
///
/// Each level has a mixture of its own of one type, as wide as the level. Routing is by image or, where the mixture's
/// policies allow it, by position. The experts keep their input's shape.
///
/// Shapes: images [B, 3, H, W], normalised, H and W multiples of the backbone's last stride -> logits [B, 1, H, W].
/// Synchronises: as its dispatcher. Errors: c10::Error for images of another shape, or a backbone of other than four
/// levels.
template <class BackbonePolicy, class MixturePolicy, class Head = FeatureHead<>>
class FeatureLevel : public torch::nn::Module {
  static_assert(backbone::policy<BackbonePolicy>,
                "moecod: FeatureLevel's first argument must be a backbone (concept moecod::backbone::policy)");
  static_assert(feature_head<Head>,
                "moecod: FeatureLevel's third argument must be a head (concept moecod::feature_head)");

 public:
  using backbone_type = BackbonePolicy;
  using mixture_type = MixturePolicy;
  using head_type = Head;
  using output_type = FeatureOutput<has_auxiliary_loss<typename MixturePolicy::balance_type>>;
  static constexpr int64_t num_experts = MixturePolicy::num_experts;
  struct Options {
    typename BackbonePolicy::Options backbone;
    typename MixturePolicy::Options mixture;  ///< of every level, but for the channels
    typename Head::Options head;
    bool recompute = false;  ///< compute activations of backbone and experts anew in the backward pass
  };

  FeatureLevel() : FeatureLevel(Options()) {}
  explicit FeatureLevel(Options options) {
    backbone = register_module("backbone", backbone::create<BackbonePolicy>(options.backbone));
    backbone->recompute = options.recompute;
    const std::vector<int64_t> dims = backbone->dims();
    TORCH_CHECK(dims.size() == 4, "FeatureLevel: expected a backbone of 4 levels, got ", dims.size());
    options.mixture.recompute |= options.recompute;
    const auto list = register_module("mixtures", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < dims.size(); ++i) {
      detail::set_channels(options.mixture.router, dims[i]);
      detail::set_channels(options.mixture.experts, dims[i]);
      mixtures.push_back(list->register_module(std::to_string(i), std::make_shared<MixturePolicy>(options.mixture)));
    }
    detail::set_channels(options.head, dims);
    head = register_module("head", std::make_shared<Head>(options.head));
  }

  /// For training: maps, decisions, auxiliary loss.
  output_type forward(const at::Tensor& images) {
    const Pyramid levels = (*backbone)(images);
    output_type out;
    Pyramid mixed;
    for (std::size_t i = 0; i < levels.size(); ++i) {
      auto level = mixtures[i]->forward(levels[i]);
      if constexpr (requires { out.auxiliary_loss; })
        out.auxiliary_loss = i == 0 ? level.auxiliary_loss : out.auxiliary_loss + level.auxiliary_loss;
      out.routing.push_back(std::move(level.routing));
      mixed.push_back(std::move(level.y));
    }
    out.maps = head->forward(mixed, images.size(2), images.size(3));
    return out;
  }

  /// logits [B, 1, H, W].
  at::Tensor operator()(const at::Tensor& images) { return forward(images).maps.logits; }

  std::shared_ptr<backbone::Backbone> backbone;
  std::vector<std::shared_ptr<MixturePolicy>> mixtures;  ///< one a level, finest first
  std::shared_ptr<Head> head;
};

}  // namespace moecod
