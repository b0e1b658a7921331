#pragma once
// Trains one stage of a feature-level model into a folder, for every program that does so.

#include <algorithm>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "examples/feature_recipe.hpp"
#include "examples/job.hpp"
#include "examples/training_data.hpp"
#include "moecod/io/weights.hpp"
#include "moecod/train/feature_level_task.hpp"
#include "moecod/train/trainer.hpp"

namespace moecod::examples {

/// Where and with what a stage is trained.
struct FeatureRun {
  std::filesystem::path folder;
  DataOptions data;
  Job job;
  double warmup_epochs = 0;  ///< 0: the trainer's own share
  io::Metadata about;        ///< for the headers of weights files
};

/// Trains one stage, from its beginning or from `resumed`, for at most `epochs` epochs unless that is 0. Writes
/// last_stageN and metrics_stageN.jsonl into the run's folder. `best` is kept in the checkpoints; `after_epoch(result)`
/// may change it. Returns how many epochs it ran.
template <class Model, class AfterEpoch>
int64_t train_feature_stage(Model& model, const std::function<std::unique_ptr<Model>()>& make, const FeatureStage& stage,
                            const FeatureRun& run, int64_t epochs, const train::Checkpoint* resumed,
                            nlohmann::ordered_json& best, AfterEpoch&& after_epoch) {
  train::TrainerOptions options = stage.trainer;
  options.stop_after = epochs;
  if (run.warmup_epochs > 0) options.warmup = std::min(1.0, run.warmup_epochs / double(options.epochs));
  const TrainingData sources = open_training_data(run.data, options.size, options.seed, stage.stage.number);
  std::filesystem::create_directories(run.folder);
  train::Trainer<train::FeatureLevelTask<Model>> trainer(model, stage.stage, options, run.job.device, make,
                                                       run.job.group);
  if (resumed != nullptr) trainer.load_state(*resumed);
  const int64_t begun = trainer.epoch();
  data::Loader<data::AnySource> validation(
      sources.validation, {.batch = options.batch_size, .height = options.size, .width = options.size, .train = false,
                           .workers = options.workers, .rank = run.job.group->rank(),
                           .world = run.job.group->world()});
  const std::string name = "stage" + std::to_string(stage.stage.number);
  std::cout << name << ": " << stage.stage.name << std::endl;
  std::optional<train::MetricsLog> log;
  if (run.job.writes()) log.emplace(run.folder / ("metrics_" + name + ".jsonl"), trainer.epoch());
  const auto show_usage = [&](const auto& result) {
    if (run.job.writes()) std::cerr << "  " << result.validation.usage_summary() << std::endl;
    after_epoch(result);
  };
  trainer.fit(sources.training, validation, log ? &*log : nullptr, show_usage, [&] {
    train::Checkpoint checkpoint{.weights = state_dict(model), .about = run.about, .state = trainer.state(),
                                 .progress = trainer.progress()};
    checkpoint.about["stage"] = std::to_string(stage.stage.number);
    checkpoint.progress["best"] = best;
    if (run.job.writes()) train::save_checkpoint(run.folder / ("last_" + name), checkpoint);
  });
  return trainer.epoch() - begun;
}

}  // namespace moecod::examples
