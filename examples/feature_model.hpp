#pragma once
// The feature-level model that the programs train and load: its type, its options, and how a file records them.

#include <nlohmann/json.hpp>

#include <array>
#include <memory>
#include <string>
#include <tuple>

#include "examples/ablation/settings.hpp"
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
  BalanceFlags<FeatureModel::mixture_type::balance_type> balance;
  bool deep_supervision = FeatureModel::head_type::deep_supervision;
  bool gradient_checkpointing = false;

  static constexpr auto options = std::make_tuple(
      option(&FeatureModelOptions::backbone, "backbone", "timm's name of the backbone"),
      option(&FeatureModelOptions::sparse, "use-sparse-moe", "the variant compiled is sparse"),
      option(&FeatureModelOptions::num_experts, "moe-num-experts", "experts a level; as compiled",
             between(FeatureModel::num_experts, FeatureModel::num_experts)),
      option(&FeatureModelOptions::top_k, "moe-top-k", "experts an image; as compiled",
             between(experts_per_row<FeatureModel::mixture_type>(), experts_per_row<FeatureModel::mixture_type>())),
      option(&FeatureModelOptions::head_width, "head-width", "channels of the head", at_least(8)),
      nested(&FeatureModelOptions::balance),
      option(&FeatureModelOptions::deep_supervision, "deep-supervision", "the loss looks at side maps as well; as compiled"),
      option(&FeatureModelOptions::gradient_checkpointing, "gradient-checkpointing",
             "compute activations anew in the backward pass instead of keeping them"));
};

/// Errors: c10::Error for a variant that is not compiled.
inline FeatureModel::Options feature_options(const FeatureModelOptions& o) {
  TORCH_CHECK(o.sparse, "--no-use-sparse-moe: the variant compiled is sparse; for a dense one make the selection of "
                        "FeatureModel in examples/feature_model.hpp select::Dense<> and build again");
  constexpr bool deep = FeatureModel::head_type::deep_supervision;
  TORCH_CHECK(o.deep_supervision == deep, deep ? "--no-deep-supervision" : "--deep-supervision", ": the variant compiled "
              "is ", deep ? "with" : "without", " deep supervision; for the other one give FeatureModel in "
              "examples/feature_model.hpp the head FeatureHead<true, true, true, true, 2, ", deep ? "false" : "true",
              "> and build again");
  FeatureModel::Options out;
  out.backbone.name = o.backbone;
  out.mixture.balance = o.balance;
  out.head.width = o.head_width;
  out.recompute = o.gradient_checkpointing;
  return out;
}

/// The model's part of the settings to start from (examples/feature_recipe.hpp has the training's).
inline void apply_model_preset(const std::string& preset, FeatureModelOptions& model) {
  if (preset == "full") return;
  model.backbone = "pvt_v2_b0";
  model.head_width = 24;
  using Balance = FeatureModel::mixture_type::balance_type;
  ablation::settle(static_cast<Balance::Options&>(model.balance));  // few steps
}

/// The key under which a weights file records the options of a feature-level model, as JSON.
inline constexpr const char* feature_model_key = "moecod.feature_model";

}  // namespace moecod::examples
