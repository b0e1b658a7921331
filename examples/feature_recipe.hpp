#pragma once
// The two-stage recipe of feature-level models as data: what trains when, and for how long.

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/core/options.hpp"
#include "moecod/train/stage.hpp"
#include "moecod/train/trainer_options.hpp"

namespace moecod::examples {

/// What the recipe leaves open.
struct FeatureRecipe {
  int64_t stage1_epochs = 40;
  double stage2_rate = 0;
  int64_t stage2_batch_size = 0;
  double router_rate = 0.01;
  bool progressive_unfreeze = false;

  static constexpr auto options = std::make_tuple(
      option(&FeatureRecipe::stage1_epochs, "stage1-epochs", "first epochs, with the backbone frozen", at_least(0)),
      option(&FeatureRecipe::stage2_rate, "stage2-lr", "peak learning rate behind them; 0 for --lr", at_least(0)),
      option(&FeatureRecipe::stage2_batch_size, "stage2-batch-size", "pictures a micro-batch behind them; 0 for "
             "--batch-size", at_least(0)),
      option(&FeatureRecipe::router_rate, "router-rate", "the routers' learning rate as a share of --lr", above(0)),
      option(&FeatureRecipe::progressive_unfreeze, "progressive-unfreeze",
             "let the backbone in from its last stage on: a tenth of the second part's epochs, at least one, each for the "
             "last one and the last two"));
};

/// A stage with the options of its trainer.
struct FeatureStage {
  train::Stage stage;
  train::TrainerOptions trainer;
};

/// The stages of the two-stage recipe, in order: mixtures and head on a frozen backbone, then everything.
inline std::vector<FeatureStage> feature_stages(const std::string& backbone, const FeatureRecipe& recipe,
                                                const train::TrainerOptions& trainer) {
  TORCH_CHECK(recipe.stage1_epochs <= trainer.epochs, "--stage1-epochs ", recipe.stage1_epochs,
              " is more than --epochs ", trainer.epochs);
  const std::vector<std::string> ours{"mixtures", "head"};
  std::vector<FeatureStage> out;
  const auto add = [&](const std::string& name, const std::vector<std::string>& backbone_parts, int64_t epochs) {
    if (epochs == 0) return;
    FeatureStage next{.stage = {.number = int64_t(out.size()) + 1, .name = name, .trains = ours}, .trainer = trainer};
    next.stage.trains.insert(next.stage.trains.end(), backbone_parts.begin(), backbone_parts.end());
    for (int64_t level = 0; level < 4; ++level)
      next.stage.rate_factors.push_back({"mixtures." + std::to_string(level) + ".router", recipe.router_rate});
    next.trainer.epochs = epochs;
    if (!backbone_parts.empty()) {
      if (recipe.stage2_rate > 0) next.trainer.learning_rate = recipe.stage2_rate;
      if (recipe.stage2_batch_size > 0) next.trainer.batch_size = recipe.stage2_batch_size;
    }
    // Here and not when its turn comes, hours later.
    TORCH_CHECK(next.trainer.batch_size % next.trainer.replicas == 0, "the batch size of '", name, "', ",
                next.trainer.batch_size, ", must be a multiple of --replicas ", next.trainer.replicas);
    out.push_back(std::move(next));
  };
  add("frozen backbone", {}, recipe.stage1_epochs);
  int64_t left = trainer.epochs - recipe.stage1_epochs;
  if (recipe.progressive_unfreeze) {
    const std::string list = backbone.starts_with("swin") ? "backbone.layers." : "backbone.stages.";
    TORCH_CHECK(left >= 3, "--progressive-unfreeze needs at least 3 epochs behind the frozen backbone, --epochs ",
                trainer.epochs, " and --stage1-epochs ", recipe.stage1_epochs, " leave ", left);
    const int64_t tenth = std::max<int64_t>(1, left / 10);
    add("the backbone's last stage", {list + "3"}, tenth);
    add("the backbone's last two stages", {list + "2", list + "3"}, tenth);
    left -= 2 * tenth;
  }
  add("everything", {"backbone"}, left);
  return out;
}

/// Settings to start from: the full recipe's ("full"), or those that train in minutes on two cores ("demo").
inline void apply_recipe_preset(const std::string& preset, train::TrainerOptions& trainer, FeatureRecipe& recipe) {
  trainer.epochs = 200;
  trainer.learning_rate = 2.5e-4;
  trainer.size = 416;
  trainer.optimizer.adamw.weight_decay = 1e-4;
  if (preset == "full") return;
  trainer.size = 96;
  trainer.batch_size = 8;
  trainer.epochs = 10;
  trainer.learning_rate = 2e-3;
  trainer.optimizer.adamw.beta2 = 0.98;
  trainer.optimizer.adamw.weight_decay = 0.05;
  trainer.optimizer.muon = {.ratio = 10, .iterations = 3};
  trainer.workers = 1;
  recipe.stage1_epochs = 1;
  recipe.router_rate = 0.3;
}

}  // namespace moecod::examples
