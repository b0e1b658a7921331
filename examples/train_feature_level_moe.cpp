// Trains a feature-level mixture in two parts: mixtures and head on a frozen backbone, then everything.
//
//   train_feature_level_moe --data-root COD10K-v3 --backbone-weights pvt_v2_b2.safetensors

#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

#include "examples/feature_model.hpp"
#include "examples/training_data.hpp"
#include "moecod/backbone/keys.hpp"
#include "moecod/train/feature_level_task.hpp"
#include "moecod/train/trainer.hpp"

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
  std::string device = "auto";
  bool use_ddp = false;
  DataOptions data;

  static constexpr auto options = std::make_tuple(
      option(&ProgramOptions::preset, "preset", "settings to start from", choices("full", "demo")),
      option(&ProgramOptions::checkpoint_dir, "checkpoint-dir", "folder for checkpoints and metrics.jsonl"),
      option(&ProgramOptions::resume_from, "resume-from", "checkpoint to continue, as <checkpoint-dir>/last_stage1"),
      option(&ProgramOptions::backbone_weights, "backbone-weights", "timm weights (.safetensors) of the backbone"),
      option(&ProgramOptions::warmup_epochs, "warmup-epochs",
             "epochs of each part in which the learning rate rises; 0 for --warmup", at_least(0)),
      option(&ProgramOptions::device, "device", "where to train", choices("auto", "cpu", "cuda")),
      option(&ProgramOptions::use_ddp, "use-ddp", "several processes under torchrun"),
      nested(&ProgramOptions::data));
};

io::Metadata about(const FeatureModelOptions& model, const FeatureStage& stage) {
  return {{"format", "pt"},
          {feature_model_key, train::options_to_json(model).dump()},
          {"moecod.img_size", std::to_string(stage.trainer.size)},
          {"stage", std::to_string(stage.stage.number)}};
}

/// Trains one stage, from its beginning or from `resumed`, for at most `epochs` epochs unless that is 0. Returns how many
/// epochs it ran.
int64_t run_stage(FeatureModel& model, const FeatureModelOptions& options, const FeatureStage& stage,
                  const ProgramOptions& program, at::Device device, int64_t epochs,
                  const train::Checkpoint* resumed, nlohmann::ordered_json& best) {
  train::TrainerOptions trainer_options = stage.trainer;
  trainer_options.stop_after = epochs;
  if (program.warmup_epochs > 0)
    trainer_options.warmup = std::min(1.0, program.warmup_epochs / double(trainer_options.epochs));
  const TrainingData sources =
      open_training_data(program.data, trainer_options.size, trainer_options.seed, stage.stage.number);
  fs::create_directories(program.checkpoint_dir);
  train::Trainer<train::FeatureLevelTask<FeatureModel>> trainer(
      model, stage.stage, trainer_options, device,
      [&] { return std::make_unique<FeatureModel>(feature_options(options)); });
  if (resumed != nullptr) trainer.load_state(*resumed);
  const int64_t begun = trainer.epoch();
  data::Loader<data::AnySource> validation(
      sources.validation, {.batch = trainer_options.batch_size, .height = trainer_options.size,
                           .width = trainer_options.size, .train = false, .workers = trainer_options.workers});
  const fs::path folder = program.checkpoint_dir;
  const std::string name = "stage" + std::to_string(stage.stage.number);
  std::cout << name << ": " << stage.stage.name << std::endl;
  train::MetricsLog log(folder / ("metrics_" + name + ".jsonl"), trainer.epoch());
  trainer.fit(
      sources.training, validation, log,
      [&](const auto& result) {
        if (!best.is_null() && result.validation.iou <= best.get<double>()) return;
        best = result.validation.iou;
        io::Metadata words = about(options, stage);
        words["epoch"] = std::to_string(result.epoch);
        words["validation_iou"] = std::to_string(result.validation.iou);
        io::write_state(folder / "feature_best.safetensors", state_dict(model), words);
      },
      [&] {
        train::Checkpoint checkpoint{.weights = state_dict(model), .about = about(options, stage),
                                     .state = trainer.state(), .progress = trainer.progress()};
        checkpoint.progress["best"] = best;
        train::save_checkpoint(folder / ("last_" + name), checkpoint);
      });
  return trainer.epoch() - begun;
}

int run(const ProgramOptions& program, const FeatureModelOptions& options, const FeatureRecipe& recipe,
        const train::TrainerOptions& trainer) {
  check_single_process(program.use_ddp);
  TORCH_CHECK(trainer.size % 32 == 0 && trainer.small_size % 32 == 0,
              "--img-size and --small-size must be multiples of 32, got ", trainer.size, " and ", trainer.small_size);
  const std::vector<FeatureStage> stages = feature_stages(options.backbone, recipe, trainer);
  const at::Device device = device_named(program.device);
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
    resumed = train::load_checkpoint(program.resume_from);
    io::load_state(model, resumed->weights);
    first = resumed->progress.at("stage");
    best = resumed->progress.at("best");
    TORCH_CHECK(first <= int64_t(stages.size()), "--resume-from: ", program.resume_from, " is of stage ", first,
                ", these flags make ", stages.size(), " stages");
  }
  model.to(device);
  int64_t left = trainer.stop_after;  // 0: all
  for (const FeatureStage& stage : stages) {
    if (stage.stage.number < first) continue;
    const bool continues = resumed && stage.stage.number == first;
    const int64_t ran = run_stage(model, options, stage, program, device, left, continues ? &*resumed : nullptr, best);
    if (trainer.stop_after > 0 && (left -= ran) <= 0) return 0;
  }
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
  apply_feature_preset(peek(argc, argv, "--preset", program.preset) == "demo" ? "demo" : "full", model, trainer, recipe);
  train::add_flags(app, program);
  train::add_flags(app, model);
  train::add_flags(app, recipe);
  train::add_flags(app, trainer);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(program, model, recipe, trainer);
  } catch (const c10::Error& error) {
    std::cerr << "train_feature_level_moe: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "train_feature_level_moe: " << error.what() << '\n';
  }
  return 1;
}
