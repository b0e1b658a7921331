#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/core/zero_gradients.hpp"
#include "moecod/expert/decoder/maps.hpp"
#include "moecod/expert/decoder/reverse_attention.hpp"
#include "moecod/loss/deep_supervision.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/loss/uncertain.hpp"

namespace moecod {

/// What a feature-level head makes of a pyramid: the final map at the image's size, the maps on the way to it in the
/// order in which they arise, and how sure the head is of its first map. `deviation` of the logits in `doubted`, both
/// [B, 1, H/4, W/4]; undefined in a head without uncertainty. No `side` in one without deep supervision.
struct FeatureMaps {
  at::Tensor logits;             ///< [B, 1, H, W], float32 (float64 in a float64 model)
  std::vector<at::Tensor> side;  ///< [B, 1, H_i, W_i]
  at::Tensor doubted, deviation;

  static constexpr auto members =
      std::make_tuple(&FeatureMaps::logits, &FeatureMaps::side, &FeatureMaps::doubted, &FeatureMaps::deviation);
};

struct FeatureHeadOptions {
  std::vector<int64_t> channels{64, 128, 320, 512};  ///< of the four levels, finest first; set by the model
  int64_t width = 64;                                ///< channels of the head, >= 8
  double initial_logit = -2;                         ///< where all maps start; objects are rare
};

/// From the levels behind the mixtures to a map of the object.
///
///     S   = search (P4);  x4 = identify (P4) * sigmoid(S)              Search; without it x4 = lateral (P4)
///     x_i = join([up(x_{i+1}), lateral (P_i)]),  i = 3, 2, 1           Decoder; without it x1 = up(x4)
///     m   = map (x1);   m = reverse attention (x1, m)                  Reverse
///     d   = softplus(doubt (x1)), the deviation of m                   Uncertainty
///     m   = m + refine([x1, sigmoid(m), d])                            Refinements times
///     logits = m at the image's size
///     side   = {S, map (x3), map (x2), m before each change}           DeepSupervision; without it {}
///
/// lateral is a 1x1, everything else 3x3 convolutions with batch normalisation and ReLU, `width` wide; a map is a 1x1
/// convolution that starts at `initial_logit`. Parts left out by a template argument have no parameters and cost nothing.
/// Without Decoder only P4 is read; what made P1 to P3 gets zero gradients, as idle experts do.
///
/// Loss, one value an image: the structure losses of logits and side maps, and loss::uncertain of m and d.
///
/// Shapes: P_i [B, channels[i-1], H/2^(i+1), W/2^(i+1)] and the image's H and W -> FeatureMaps. Synchronises: never.
/// Errors: c10::Error on other shapes. Source: docs/sources.md, feature-level model.
template <bool Search = true, bool Decoder = true, bool Reverse = true, bool Uncertainty = true,
          int64_t Refinements = 2, bool DeepSupervision = true>
class FeatureHead : public torch::nn::Module {
  static_assert(Refinements >= 0, "moecod: FeatureHead: Refinements must not be negative");

 public:
  using Options = FeatureHeadOptions;
  using Output = FeatureMaps;
  static constexpr bool deep_supervision = DeepSupervision;

  FeatureHead() : FeatureHead(Options()) {}
  explicit FeatureHead(const Options& options) : options_(options) {
    using namespace expert::decoder;
    check_options("FeatureHead", options.channels, options.width);
    const int64_t width = options.width, top = options.channels.back();
    if constexpr (Search) {
      identify_ = register_module("identify", conv_norm(top, width, 3, After::relu));
      search_ = register_module("search", conv_norm(top, width, 3, After::relu));
      search_map_ = map("search_map");
    } else {
      lateral_[3] = register_module("lateral4", conv_norm(top, width, 1, After::relu));
    }
    for (std::size_t i = 0; i < 3; ++i) {
      const std::string level = std::to_string(i + 1);
      if constexpr (Decoder) {
        lateral_[i] = register_module("lateral" + level, conv_norm(options.channels[i], width, 1, After::relu));
        join_[i] = {register_module("join" + level + "a", conv_norm(2 * width, width, 3, After::relu)),
                    register_module("join" + level + "b", conv_norm(width, width, 3, After::relu))};
      }
      if (has_map(i)) map_[i] = map("map" + level);
    }
    if constexpr (Reverse)
      reverse_ = register_module("reverse", std::make_shared<ReverseAttention>(ReverseAttention::Options{
                                                .in = width, .width = width, .kernel = 3, .depth = 2, .last_kernel = 3}));
    if constexpr (Uncertainty) {
      doubt_ = register_module("doubt", conv_norm(width, width, 3, After::relu));
      doubt_map_ = register_module("doubt_map", conv(width, 1, 1));
    }
    for (int64_t r = 0; r < Refinements; ++r) {
      const std::string name = "refine" + std::to_string(r);
      refine_.push_back({register_module(name + "a", conv_norm(width + 1 + int64_t{Uncertainty}, width, 3, After::relu)),
                         register_module(name + "b", conv_norm(width, width, 3, After::relu)),
                         register_module(name + "_map", conv(width, 1, 1))});
      fill_bias(refine_.back().map, 0);
    }
  }

  Output forward(const Pyramid& pyramid, int64_t height, int64_t width) {
    using namespace expert::decoder;
    check_pyramid("FeatureHead", pyramid, options_.channels);
    for (std::size_t i = 0; i < pyramid.size(); ++i)
      TORCH_CHECK(pyramid[i].size(2) == height >> (i + 2) && pyramid[i].size(3) == width >> (i + 2),
                  "FeatureHead: pyramid[", i, "] must be ", height >> (i + 2), " x ", width >> (i + 2),
                  " for an image of ", height, " x ", width, ", got ", pyramid[i].sizes());
    Output out;
    at::Tensor x;
    if constexpr (Search) {
      x = identify_->forward(pyramid[3]);
      out.side.push_back(search_map_->forward(search_->forward(pyramid[3])));
      x = x * at::sigmoid(out.side.back());
    } else {
      x = lateral_[3]->forward(pyramid[3]);
    }
    if constexpr (!Decoder)
      x = with_zero_gradients(layers::resize_like(x, pyramid[0]), {pyramid.begin(), pyramid.begin() + 3});
    for (std::size_t i = 3; i-- > 0;) {
      if constexpr (Decoder) {
        const at::Tensor joined = at::cat({layers::resize_like(x, pyramid[i]), lateral_[i]->forward(pyramid[i])}, 1);
        x = join_[i].second->forward(join_[i].first->forward(joined));
      }
      if (has_map(i)) out.side.push_back(map_[i]->forward(x));
    }
    if constexpr (Reverse) out.side.push_back(reverse_->forward(x, out.side.back()));
    at::Tensor m = loss::full_precision(out.side.back());
    if constexpr (Uncertainty) {
      out.doubted = m;
      out.deviation = at::softplus(loss::full_precision(doubt_map_->forward(doubt_->forward(x))));
    }
    for (const Refinement& refine : refine_) {
      std::vector<at::Tensor> seen{x, at::sigmoid(m).to(x.scalar_type())};
      if constexpr (Uncertainty) seen.push_back(out.deviation.to(x.scalar_type()));
      m = m + refine.map->forward(refine.second->forward(refine.first->forward(at::cat(seen, 1))));
      out.side.push_back(m);
    }
    out.side.pop_back();  // the last one is the answer
    if constexpr (!DeepSupervision) out.side.clear();
    out.logits = at_image_size(m, height, width);
    return out;
  }

  at::Tensor loss(const Output& output, const at::Tensor& target) const {
    const at::Tensor weight = loss::structure_weight(target);
    at::Tensor total = loss::deep_supervision(output.logits, output.side, target, [&](const auto& x, const auto& m) {
      return loss::structure(x, m, weight, loss::StructureForm::weighted_bce);
    });
    if constexpr (Uncertainty)
      total = total + loss::uncertain(layers::resize_like(output.doubted, target),
                                      layers::resize_like(output.deviation, target), target);
    return total;
  }

 private:
  struct Refinement {
    expert::decoder::ConvNorm first, second;
    expert::decoder::Conv2d map;
  };

  /// Level 1's map is refined to the answer; those of coarser levels are looked at by the loss alone.
  static constexpr bool has_map(std::size_t i) { return i == 0 || (Decoder && DeepSupervision); }

  expert::decoder::Conv2d map(const std::string& name) {
    auto layer = register_module(name, expert::decoder::conv(options_.width, 1, 1));
    expert::decoder::fill_bias(layer, options_.initial_logit);
    return layer;
  }

  Options options_;
  expert::decoder::ConvNorm identify_, search_, doubt_;
  expert::decoder::Conv2d search_map_, doubt_map_;
  std::array<expert::decoder::ConvNorm, 4> lateral_;
  std::array<std::pair<expert::decoder::ConvNorm, expert::decoder::ConvNorm>, 3> join_;
  std::array<expert::decoder::Conv2d, 3> map_;
  std::shared_ptr<expert::decoder::ReverseAttention> reverse_;
  std::vector<Refinement> refine_;
};

}  // namespace moecod
