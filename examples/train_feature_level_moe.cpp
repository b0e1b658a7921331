// Trains a feature-level mixture in two parts: mixtures and head on a frozen backbone, then everything.
//
//   train_feature_level_moe --data-root COD10K-v3 --backbone-weights pvt_v2_b2.safetensors

#include <CLI/CLI.hpp>

#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

#include "examples/feature_model.hpp"
#include "examples/feature_recipe.hpp"
#include "examples/feature_training.hpp"
#include "examples/job.hpp"
#include "moecod/backbone/keys.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;
namespace fs = std::filesystem;

struct ProgramOptions {
  std::string preset = "full";
  std::string checkpoint_dir = "./checkpoints_feature";
  std::string resume_from;
  std::string backbone_weights;
  double warmup_epochs = 0;
  JobOptions job;
  DataOptions data;

  static constexpr auto options = std::make_tuple(
      option(&ProgramOptions::preset, "preset", "settings to start from", choices("full", "demo")),
      option(&ProgramOptions::checkpoint_dir, "checkpoint-dir", "folder for checkpoints and metrics.jsonl"),
      option(&ProgramOptions::resume_from, "resume-from", "checkpoint to continue, as <checkpoint-dir>/last_stage1"),
      option(&ProgramOptions::backbone_weights, "backbone-weights", "timm weights (.safetensors) of the backbone"),
      option(&ProgramOptions::warmup_epochs, "warmup-epochs",
             "epochs of each part in which the learning rate rises; 0 for --warmup", at_least(0)),
      nested(&ProgramOptions::job),
      nested(&ProgramOptions::data));
};

int run(const ProgramOptions& program, const FeatureModelOptions& options, const FeatureRecipe& recipe,
        const train::TrainerOptions& trainer) {
  TORCH_CHECK(trainer.size % 32 == 0 && trainer.small_size % 32 == 0,
              "--img-size and --small-size must be multiples of 32, got ", trainer.size, " and ", trainer.small_size);
  const std::vector<FeatureStage> stages = feature_stages(options.backbone, recipe, trainer);
  const Job job = open_job(program.job);
  at::manual_seed(static_cast<uint64_t>(trainer.seed));
  FeatureModel model(feature_options(options));
  if (!program.backbone_weights.empty()) {
    const StateDict weights = io::read_state(program.backbone_weights);
    io::load_state(*model.backbone, weights, {.rename = backbone::timm_keys(weights)});
  }
  std::optional<train::Checkpoint> resumed;
  nlohmann::ordered_json best;
  int64_t first = 1;
  if (!program.resume_from.empty()) {
    resumed = load_checkpoint(job, program.resume_from);
    check_recorded(resumed->about, feature_model_key, train::options_to_json(options), {"gradient-checkpointing"});
    check_recorded(resumed->about, recipe_key, recipe_json(recipe, program.data), {});
    io::load_state(model, resumed->weights);
    first = resumed->progress.at("stage");
    // In another folder the best weights so far are not there to be kept.
    if (fs::exists(fs::path(program.checkpoint_dir) / "feature_best.safetensors")) best = resumed->progress.at("best");
    TORCH_CHECK(first <= int64_t(stages.size()), "--resume-from: ", program.resume_from, " is of stage ", first,
                ", these flags make ", stages.size(), " stages");
  }
  model.to(job.device);
  replay_graphs(model, recorder_for(job, trainer));
  FeatureRun run{.folder = program.checkpoint_dir, .data = program.data, .job = job,
                 .warmup_epochs = program.warmup_epochs,
                 .about = {{"format", "pt"},
                           {feature_model_key, train::options_to_json(options).dump()},
                           {variant_key, variant<FeatureModel>()},
                           {recipe_key, recipe_json(recipe, program.data).dump()},
                           {"moecod.img_size", std::to_string(trainer.size)}}};
  int64_t left = trainer.stop_after;  // 0: all
  for (const FeatureStage& stage : stages) {
    if (stage.stage.number < first) continue;
    const bool continues = resumed && stage.stage.number == first;
    const int64_t ran = train_feature_stage<FeatureModel>(
        model, [&] { return std::make_unique<FeatureModel>(feature_options(options)); }, stage, run, left,
        continues ? &*resumed : nullptr, best, [&](const auto& result) {
          if (!best.is_null() && result.validation.iou <= best.template get<double>()) return;
          best = result.validation.iou;
          if (!job.writes()) return;
          io::Metadata words = run.about;
          words["stage"] = std::to_string(stage.stage.number);
          words["epoch"] = std::to_string(result.epoch);
          words["validation_iou"] = std::to_string(result.validation.iou);
          io::write_state(run.folder / "feature_best.safetensors", state_dict(model), words);
        });
    if (trainer.stop_after > 0 && (left -= ran) <= 0) return 0;
  }
  TORCH_CHECK(!best.is_null(), "--resume-from: ", program.resume_from, " is the end of a run, so no epoch was left to train; "
              "its best weights are in the folder it was trained in, not in --checkpoint-dir ", program.checkpoint_dir);
  std::cout << (fs::path(program.checkpoint_dir) / "feature_best.safetensors").string() << "  validation IoU "
            << best.get<double>() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a feature-level mixture of small experts on every level of a backbone.");
  ProgramOptions program;
  FeatureModelOptions model;
  FeatureRecipe recipe;
  train::TrainerOptions trainer;
  const std::string preset = peek(argc, argv, "--preset", program.preset) == "demo" ? "demo" : "full";
  apply_model_preset(preset, model);
  apply_recipe_preset(preset, trainer, recipe);
  train::add_flags(app, program);
  app.add_option("--dataset-path", program.data.data_root, "another name of --data-root");
  train::add_flags(app, model);
  train::add_flags(app, recipe);
  train::add_flags(app, trainer);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(program, model, recipe, trainer);
  } catch (const train::Stopped& stopped) {
    report_error("train_feature_level_moe", std::string(stopped.what()) + "; go on with --resume-from");
    return train::stopped_exit_status;
  } catch (const c10::Error& error) {
    report_error("train_feature_level_moe", error.what_without_backtrace());
  } catch (const std::exception& error) {
    report_error("train_feature_level_moe", error.what());
  }
  return 1;
}
