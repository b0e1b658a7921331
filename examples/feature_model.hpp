#pragma once
// The feature-level model that the programs train and load: its type, its options, and how a file records them.

#include <nlohmann/json.hpp>

#include <array>
#include <memory>
#include <string>
#include <tuple>

#include "examples/policy_options.hpp"
#include "moecod/backbone/any.hpp"
#include "moecod/core/options.hpp"
#include "moecod/expert/contrast.hpp"
#include "moecod/expert/edge.hpp"
#include "moecod/expert/frequency.hpp"
#include "moecod/expert/texture.hpp"
#include "moecod/io/weights.hpp"
#include "moecod/model/feature_level.hpp"
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/experts/distinct.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "moecod/train/flags.hpp"

namespace moecod::examples {

/// The variant compiled. For another number of experts or another policy, change these lines (with the include of the
/// policy) and build again.
using FeatureModel =
    FeatureLevel<backbone::Any, Mixture<router::GlobalPool,
                                        Distinct<expert::Texture<>, expert::Frequency<>, expert::Edge<>,
                                                 expert::Contrast<>, expert::Texture<>, expert::Frequency<>>,
                                        select::TopK<2>, balance::EmaBias, dispatch::Batched>>;

/// One a place, in the order of the experts.
inline const std::array<std::string, FeatureModel::num_experts> feature_expert_names{
    "Texture 1", "Frequency 1", "Edge", "Contrast", "Texture 2", "Frequency 2"};

/// What makes one model of that type differ from another.
struct FeatureModelOptions {
  std::string backbone = "pvt_v2_b2";
  bool sparse = true;
  int64_t num_experts = FeatureModel::num_experts;
  int64_t top_k = experts_per_row<FeatureModel::mixture_type>();
  int64_t head_width = FeatureHeadOptions().width;
  double bias_rate = default_rate<FeatureModel::mixture_type::balance_type::Options>();
  double bias_decay = default_decay<FeatureModel::mixture_type::balance_type::Options>();
  double bias_limit = default_limit<FeatureModel::mixture_type::balance_type::Options>();
  bool deep_supervision = true;
  bool gradient_checkpointing = false;

  static constexpr auto options = std::make_tuple(
      option(&FeatureModelOptions::backbone, "backbone", "timm's name of the backbone"),
      option(&FeatureModelOptions::sparse, "use-sparse-moe", "the variant compiled is sparse"),
      option(&FeatureModelOptions::num_experts, "moe-num-experts", "experts a level; as compiled",
             between(FeatureModel::num_experts, FeatureModel::num_experts)),
      option(&FeatureModelOptions::top_k, "moe-top-k", "experts an image; as compiled",
             between(experts_per_row<FeatureModel::mixture_type>(), experts_per_row<FeatureModel::mixture_type>())),
      option(&FeatureModelOptions::head_width, "head-width", "channels of the head", at_least(8)),
      option(&FeatureModelOptions::bias_rate, "bias-rate", "step of the balancing bias, in logits", at_least(0)),
      option(&FeatureModelOptions::bias_decay, "bias-decay", "decay of the usage that the bias follows",
             between(0, 0.99999)),
      option(&FeatureModelOptions::bias_limit, "bias-limit", "largest size of the balancing bias, in logits", above(0)),
      option(&FeatureModelOptions::deep_supervision, "deep-supervision", "the loss looks at the side maps as well"),
      option(&FeatureModelOptions::gradient_checkpointing, "gradient-checkpointing",
             "compute activations anew in the backward pass instead of keeping them"));
};

/// Errors: c10::Error for a variant that is not compiled.
inline FeatureModel::Options feature_options(const FeatureModelOptions& o) {
  TORCH_CHECK(o.sparse, "--no-use-sparse-moe: the variant compiled is sparse; for a dense one make the selection of "
                        "FeatureModel in examples/feature_model.hpp select::Dense<> and build again");
  FeatureModel::Options out;
  out.backbone.name = o.backbone;
  set_rate(out.mixture.balance, o.bias_rate);
  set_decay(out.mixture.balance, o.bias_decay);
  set_limit(out.mixture.balance, o.bias_limit);
  out.head.width = o.head_width;
  out.head.deep_supervision = o.deep_supervision;
  out.recompute = o.gradient_checkpointing;
  return out;
}

/// The model's part of the settings to start from (examples/feature_recipe.hpp has the training's).
inline void apply_model_preset(const std::string& preset, FeatureModelOptions& model) {
  if (preset == "full") return;
  model.backbone = "pvt_v2_b0";
  model.head_width = 24;
  // Few steps: the bias must be able to travel, as far as routers' logits go, which are held within +-10.
  model.bias_rate = 0.1;
  model.bias_decay = 0.9;
  model.bias_limit = 20;
}

/// The key under which a weights file records the options of a feature-level model, as JSON.
inline constexpr const char* feature_model_key = "moecod.feature_model";

}  // namespace moecod::examples
