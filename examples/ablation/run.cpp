#include "examples/ablation/run.hpp"

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "examples/ablation/scoring.hpp"
#include "examples/feature_training.hpp"
#include "moecod/core/keep_modes.hpp"
#include "moecod/io/file.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/interference.hpp"

namespace moecod::examples::ablation {

namespace {

std::vector<double> interference(AnyFeatureModel& model, const train::DeviceBatch& batch) {
  const KeepModes keep(model);
  model.eval();
  const auto answer = model.forward(batch.images);
  const at::Tensor task = model.head->loss(answer.maps, batch.masks).mean();
  const std::vector<at::Tensor> auxiliary = model.auxiliary_losses(answer.routing);
  const std::vector<std::vector<at::Tensor>> parameters = model.router_parameters();
  std::vector<double> out(auxiliary.size(), NAN);
  for (std::size_t i = 0; i < out.size(); ++i)
    if (auxiliary[i].defined()) out[i] = train::gradient_cosine(task, auxiliary[i], parameters[i]);
  return out;
}

/// The first validation pictures.
train::DeviceBatch probe_batch(const RunOptions& options) {
  const train::TrainerOptions& trainer = options.trainer;
  const TrainingData sources = open_training_data(options.data, trainer.size, trainer.seed, 1);
  data::Loader<data::AnySource> loader(
      sources.validation, {.batch = 32, .height = trainer.size, .width = trainer.size, .train = false});
  loader.start(0);
  auto batch = loader.next();
  TORCH_CHECK(batch, "--data-root: no readable picture to validate on");
  return train::to_device(std::move(*batch), options.device);
}

/// The last checkpoint of a run in `folder`, if there is one.
std::optional<train::Checkpoint> last_checkpoint(const std::filesystem::path& folder, int64_t stages) {
  for (int64_t stage = stages; stage >= 1; --stage) {
    const std::filesystem::path stem = folder / ("last_stage" + std::to_string(stage));
    if (std::filesystem::exists(stem.string() + ".resume.safetensors")) return train::load_checkpoint(stem);
  }
  return std::nullopt;
}

}  // namespace

void run_row(const RunOptions& options, const RowEntry& row, const std::filesystem::path& folder) {
  const train::TrainerOptions& trainer = options.trainer;
  const std::vector<FeatureStage> stages = feature_stages("pvt_v2_b0", options.recipe, trainer);
  at::manual_seed(static_cast<uint64_t>(trainer.seed));
  const std::function<std::unique_ptr<AnyFeatureModel>()> make = [&] { return row.make(options.head_width); };
  const std::unique_ptr<AnyFeatureModel> owner = make();
  AnyFeatureModel& model = *owner;
  int64_t first = 1;
  const std::optional<train::Checkpoint> resumed = last_checkpoint(folder, int64_t(stages.size()));
  if (resumed) {
    io::load_state(model, resumed->weights);
    first = resumed->progress.at("stage");
  }
  model.to(options.device);
  const train::DeviceBatch probe = probe_batch(options);
  const FeatureRun run{.folder = folder, .data = options.data, .device = options.device,
                       .about = {{"format", "pt"}, {"moecod.ablation_row", row.key()}}};
  nlohmann::ordered_json best;  // stays empty: what is scored are the last weights
  for (const FeatureStage& stage : stages) {
    if (stage.stage.number < first) continue;
    const bool continues = resumed && stage.stage.number == first;
    const int64_t epoch = continues ? int64_t(resumed->progress.at("epoch")) : 0;
    train::MetricsLog angles(folder / ("interference_stage" + std::to_string(stage.stage.number) + ".jsonl"), epoch);
    train_feature_stage<AnyFeatureModel>(model, make, stage, run, 0, continues ? &*resumed : nullptr, best,
                                         [&](const auto& result) {
                                           angles.write({{"stage", stage.stage.number},
                                                         {"epoch", result.epoch},
                                                         {"cosine", interference(model, probe)}});
                                         });
  }
  model.eval();
  nlohmann::ordered_json result = score_test(
      [&](const at::Tensor& images) {
        auto answer = model.forward(images);
        return Answer{std::move(answer.maps.logits), std::move(answer.routing)};
      },
      options.data.data_root, trainer.size, trainer.batch_size, options.device);
  result["table"] = row.table;
  result["policies"] = row.policies;
  result["base"] = row.base;
  result["seed"] = trainer.seed;
  result["stages"] = stages.size();
  io::write_atomically(folder / "result.json", result.dump(1) + "\n");
}

}  // namespace moecod::examples::ablation
