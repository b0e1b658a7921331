#pragma once
// The three stages of the model level as data, and their settings at full size and at the demo's.

#include <array>
#include <string>

#include "examples/camo_model.hpp"
#include "moecod/train/stage.hpp"
#include "moecod/train/trainer_options.hpp"

namespace moecod::examples {

/// What the recipe leaves open.
struct RecipeOptions {
  int64_t experts_per_step = 2;   ///< stage 1: experts drawn for each step; 4: all
  bool train_backbone = false;    ///< stage 1 with --expert-id > 0: move the shared backbone too
  bool fixed_statistics = false;  ///< keep batch statistics as they are
  double backbone_rate = 1;
  train::Objective objective;

  static constexpr auto options = std::make_tuple(
      option(&RecipeOptions::experts_per_step, "experts-per-step", "stage 1: experts drawn for each step",
             between(1, 4)),
      option(&RecipeOptions::train_backbone, "train-backbone",
             "with --expert-id above 0: move the shared backbone as well (the other experts go stale)"),
      option(&RecipeOptions::fixed_statistics, "fixed-statistics", "keep batch statistics as they are"),
      option(&RecipeOptions::backbone_rate, "backbone-rate", "the backbone's learning rate as a share of --lr",
             between(0, 1)),
      nested(&RecipeOptions::objective));
};

/// Settings of a stage: full size ("full"), or those that train in minutes on two cores ("demo").
inline void apply_preset(const std::string& preset, int64_t stage, CamoOptions& model, train::TrainerOptions& trainer,
                         RecipeOptions& recipe) {
  train::Objective& objective = recipe.objective;
  objective = stage == 1   ? train::Objective{}
              : stage == 2 ? train::Objective{.mixture = 1, .own = 0, .router = 1, .from = 0}
                           : train::Objective{.mixture = 1, .own = 0.5, .router = 1, .detach_gates = true, .from = 0};
  recipe.fixed_statistics = stage == 3;
  recipe.backbone_rate = stage == 3 ? 0.5 : 1;
  if (preset == "full") {
    trainer.epochs = std::array{40, 30, 80}[stage - 1];
    trainer.learning_rate = std::array{3e-4, 2e-4, 5e-5}[stage - 1];
    return;
  }
  model.backbone = "pvt_v2_b0";
  model.sinet_width = model.pranet_width = 24;
  model.zoomnet_width = model.ujsc_width = 12;
  model.zoom_resample = true;
  model.router_width = 16;
  [](auto& balance) {
    if constexpr (requires { balance.rate; }) balance.rate = 2e-3;
  }(model.balance);
  trainer.size = 96;
  trainer.batch_size = 8;
  trainer.epochs = std::array{8, 2, 2}[stage - 1];
  trainer.learning_rate = std::array{2e-3, 1e-3, 3e-4}[stage - 1];
  trainer.optimizer.adamw.beta2 = 0.98;
  trainer.optimizer.adamw.weight_decay = 0.05;
  trainer.optimizer.muon = {.ratio = 10, .iterations = 3};
  objective.answer = std::array{1.0, 0.0, 0.5}[stage - 1];
  objective.temperature = 0.5;
  trainer.workers = 1;
}

/// The stage with that number; expert -1: all experts.
inline train::Stage make_stage(int64_t number, int64_t expert, const RecipeOptions& recipe) {
  train::Stage stage{.number = number, .objective = recipe.objective};
  stage.fixed_statistics = recipe.fixed_statistics;
  if (number == 1 && expert >= 0) {
    stage.name = "expert " + std::to_string(expert);
    stage.trains = {"mixture.experts." + std::to_string(expert)};
    if (expert == 0 || recipe.train_backbone) stage.trains.push_back("backbone");
    stage.exposure = train::Exposure::only;
    stage.expert = expert;
  } else if (number == 1) {
    stage.name = "experts";
    stage.trains = {"backbone", "mixture.experts"};
    stage.exposure = train::Exposure::drawn;
    stage.experts_per_step = recipe.experts_per_step;
  } else if (number == 2) {
    stage.name = "router";
    stage.trains = {"mixture.router", "mixture.balance"};
    stage.exposure = train::Exposure::all;
  } else {
    stage.name = "everything";
    stage.trains = {"backbone", "mixture"};
    stage.exposure = train::Exposure::all;
  }
  if (recipe.backbone_rate != 1) stage.rate_factors = {{"backbone", recipe.backbone_rate}};
  return stage;
}

}  // namespace moecod::examples
