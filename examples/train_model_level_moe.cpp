// Trains a model-level mixture in three stages: 1 the experts, 2 the router, 3 everything.
//
//   train_model_level_moe --stage 1 --data-root COD10K-v3
//   train_model_level_moe --stage 2 --data-root COD10K-v3 --load-experts-from checkpoints_moe/expert_all_best.safetensors
//   train_model_level_moe --stage 3 --data-root COD10K-v3 --load-experts-from checkpoints_moe/router_best.safetensors

#include <CLI/CLI.hpp>

#include <filesystem>
#include <iostream>
#include <string>

#include "examples/checkpoints.hpp"
#include "examples/job.hpp"
#include "examples/model_level_recipe.hpp"
#include "examples/training_data.hpp"
#include "moecod/backbone/keys.hpp"
#include "moecod/train/model_level_task.hpp"
#include "moecod/train/trainer.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;
namespace fs = std::filesystem;

struct ProgramOptions {
  int64_t stage = 1;
  int64_t expert_id = -1;
  std::string preset = "full";
  std::string checkpoint_dir = "./checkpoints_moe";
  std::vector<std::string> load_experts_from;
  std::string resume_from;
  std::string backbone_weights;
  int64_t router_warmup_epochs = 0;
  JobOptions job;
  DataOptions data;

  static constexpr auto options = std::make_tuple(
      option(&ProgramOptions::stage, "stage", "1 experts, 2 router, 3 everything", between(1, 3)),
      option(&ProgramOptions::expert_id, "expert-id",
             "stage 1: train this expert alone; the first trains the backbone too, the others keep it frozen",
             between(-1, Camo::num_experts - 1)),
      option(&ProgramOptions::preset, "preset", "settings to start from", choices("full", "demo")),
      option(&ProgramOptions::checkpoint_dir, "checkpoint-dir", "folder for checkpoints and metrics.jsonl"),
      option(&ProgramOptions::load_experts_from, "load-experts-from",
             "checkpoint of one expert, all experts, a router or a model; may repeat"),
      option(&ProgramOptions::resume_from, "resume-from", "checkpoint to continue, as <checkpoint-dir>/last_stage1"),
      option(&ProgramOptions::backbone_weights, "backbone-weights", "timm weights (.safetensors) of the backbone"),
      option(&ProgramOptions::router_warmup_epochs, "router-warmup-epochs",
             "stage 2: epochs in which the learning rate rises", at_least(0)),
      nested(&ProgramOptions::job),
      nested(&ProgramOptions::data));
};

/// Keeps the best weights of each kind, by a score of the validation set.
class Best {
 public:
  Best(bool writes, fs::path folder, const Camo& model, const CamoOptions& options, int64_t stage, int64_t size)
      : writes_(writes), folder_(std::move(folder)), model_(model), options_(options), stage_(stage), size_(size) {}

  void offer(const std::string& name, double score, int64_t epoch, const std::vector<std::string>& parts) {
    if (scores_.contains(name) && score <= scores_[name].get<double>()) return;
    scores_[name] = score;
    if (!writes_) return;
    write_parts(folder_ / (name + ".safetensors"), model_, options_, parts,
                {{size_key, std::to_string(size_)}, {"stage", std::to_string(stage_)}, {"epoch", std::to_string(epoch)},
                 {"validation_iou", std::to_string(score)}});
  }

  nlohmann::ordered_json scores_ = nlohmann::ordered_json::object();

 private:
  bool writes_;
  fs::path folder_;
  const Camo& model_;
  const CamoOptions& options_;
  int64_t stage_, size_;
};

void offer_all(Best& best, const ProgramOptions& program, const train::EpochResult<train::Validation>& result) {
  const std::vector<double>& experts = result.validation.experts;
  const std::vector<std::string> whole{"backbone.", "mixture."};
  const auto expert = [](int64_t e) { return "mixture.experts." + std::to_string(e) + "."; };
  if (program.stage == 1 && program.expert_id >= 0) {
    best.offer("expert_" + std::to_string(program.expert_id) + "_best", experts[std::size_t(program.expert_id)],
               result.epoch, {"backbone.", expert(program.expert_id)});
  } else if (program.stage == 1) {
    double mean = 0;
    for (int64_t e = 0; e < Camo::num_experts; ++e) {
      best.offer("expert_" + std::to_string(e) + "_best", experts[std::size_t(e)], result.epoch,
                 {"backbone.", expert(e)});
      mean += experts[std::size_t(e)] / double(Camo::num_experts);
    }
    best.offer("expert_all_best", mean, result.epoch, {"backbone.", "mixture.experts."});
  } else {
    best.offer(program.stage == 2 ? "router_best" : "ensemble_best", result.validation.ensemble, result.epoch, whole);
  }
}

void check(const ProgramOptions& program, const train::TrainerOptions& trainer) {
  TORCH_CHECK(trainer.size % 32 == 0 && trainer.small_size % 32 == 0,
              "--img-size and --small-size must be multiples of 32, got ", trainer.size, " and ", trainer.small_size);
  TORCH_CHECK(program.stage == 1 || program.expert_id < 0, "--expert-id is for stage 1 only");
  TORCH_CHECK(program.stage == 1 || !program.load_experts_from.empty() || !program.resume_from.empty(), "stage ",
              program.stage, " needs --load-experts-from: the experts of stage 1",
              program.stage == 3 ? " and the router of stage 2" : "");
  TORCH_CHECK(program.expert_id < 1 || !program.load_experts_from.empty() || !program.resume_from.empty(),
              "--expert-id ", program.expert_id,
              " trains on the shared backbone of expert 0: give it with --load-experts-from");
}

int run(const ProgramOptions& program, const CamoOptions& model_options, const RecipeOptions& recipe,
        train::TrainerOptions trainer_options) {
  check(program, trainer_options);
  const Job job = open_job(program.job);
  if (program.stage == 2 && program.router_warmup_epochs > 0)
    trainer_options.warmup =
        std::min(1.0, double(program.router_warmup_epochs) / double(trainer_options.epochs));
  const TrainingData sources =
      open_training_data(program.data, trainer_options.size, trainer_options.seed, program.stage);

  at::manual_seed(static_cast<uint64_t>(trainer_options.seed));
  Camo model(camo_options(model_options));
  if (!program.backbone_weights.empty()) {
    const StateDict weights = io::read_state(program.backbone_weights);
    io::load_state(*model.backbone, weights, {.rename = backbone::timm_keys(weights)});
  }
  std::set<std::string> found;
  if (!program.load_experts_from.empty()) found = load_parts(model, model_options, program.load_experts_from);
  TORCH_CHECK(program.expert_id < 1 || found.contains("backbone") || !program.resume_from.empty(), "--expert-id ",
              program.expert_id, ": no backbone in --load-experts-from");
  if (program.stage > 1 && program.resume_from.empty())
    for (int64_t e = 0; e < Camo::num_experts; ++e)
      TORCH_CHECK(found.contains("expert " + std::to_string(e)), "stage ", program.stage, " needs all experts; expert ",
                  e, " is in none of the files of --load-experts-from");

  std::optional<train::Checkpoint> resumed;
  if (!program.resume_from.empty()) {
    resumed = load_checkpoint(job, program.resume_from);
    io::load_state(model, resumed->weights);
  }
  model.to(job.device);
  replay_graphs(model, recorder_for(job, trainer_options));
  train::Trainer<train::ModelLevelTask<Camo>> trainer(
      model, make_stage(program.stage, program.expert_id, recipe), trainer_options, job.device,
      [&] { return std::make_unique<Camo>(camo_options(model_options)); }, job.group);
  Best best(job.writes(), program.checkpoint_dir, model, model_options, program.stage, trainer_options.size);
  if (resumed) {
    trainer.load_state(*resumed);
    check_recorded(resumed->about, model_key, train::options_to_json(model_options), {"gradient-checkpointing"});
    check_recorded(resumed->about, recipe_key, recipe_json(recipe, program.data), {});
    // In another folder the best weights so far are not there to be kept.
    for (const auto& [name, score] : resumed->progress.at("best").items())
      if (fs::exists(fs::path(program.checkpoint_dir) / (name + ".safetensors"))) best.scores_[name] = score;
    std::cout << "continuing stage " << program.stage << " at epoch " << trainer.epoch() + 1 << std::endl;
  }

  data::Loader<data::AnySource> validation(
      sources.validation, {.batch = trainer_options.batch_size, .height = trainer_options.size,
                           .width = trainer_options.size, .train = false, .workers = trainer_options.workers,
                           .rank = job.group->rank(), .world = job.group->world()});
  const fs::path folder = program.checkpoint_dir;
  fs::create_directories(folder);
  const std::string name = "stage" + std::to_string(program.stage) +
                           (program.expert_id >= 0 ? "_expert_" + std::to_string(program.expert_id) : "");
  std::optional<train::MetricsLog> log;
  if (job.writes()) log.emplace(folder / ("metrics_" + name + ".jsonl"), trainer.epoch());
  trainer.fit(
      sources.training, validation, log ? &*log : nullptr,
      [&](const train::EpochResult<train::Validation>& result) { offer_all(best, program, result); },
      [&] {
        train::Checkpoint checkpoint{.weights = state_dict(model), .about = {}, .state = trainer.state(),
                                     .progress = trainer.progress()};
        if (!job.writes()) return;
        checkpoint.about[model_key] = train::options_to_json(model_options).dump();
        checkpoint.about[variant_key] = variant<Camo>();
        checkpoint.about[recipe_key] = recipe_json(recipe, program.data).dump();
        checkpoint.about[size_key] = std::to_string(trainer_options.size);
        checkpoint.about[backbone_key] = backbone_id(checkpoint.weights);
        checkpoint.progress["best"] = best.scores_;
        train::save_checkpoint(folder / ("last_" + name), checkpoint);
      });
  for (const auto& [kind, score] : best.scores_.items())
    std::cout << (folder / (kind + ".safetensors")).string() << "  validation IoU " << score.get<double>() << '\n';
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a model-level mixture of camouflage experts in three stages.");
  ProgramOptions program;
  CamoOptions model;
  RecipeOptions recipe;
  train::TrainerOptions trainer;
  const std::string preset = peek(argc, argv, "--preset", program.preset), stage = peek(argc, argv, "--stage", "1");
  apply_preset(preset == "demo" ? "demo" : "full", stage == "2" ? 2 : stage == "3" ? 3 : 1, model, trainer, recipe);
  train::add_flags(app, program);
  train::add_flags(app, model);
  train::add_flags(app, trainer);
  train::add_flags(app, recipe);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(program, model, recipe, trainer);
  } catch (const train::Stopped& stopped) {
    report_error("train_model_level_moe", std::string(stopped.what()) + "; go on with --resume-from");
    return train::stopped_exit_status;
  } catch (const c10::Error& error) {
    report_error("train_model_level_moe", error.what_without_backtrace());
  } catch (const std::exception& error) {
    report_error("train_model_level_moe", error.what());
  }
  return 1;
}
