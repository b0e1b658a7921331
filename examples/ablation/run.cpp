#include "examples/ablation/run.hpp"

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "examples/ablation/scoring.hpp"
#include "examples/ablation/table.hpp"
#include "examples/feature_training.hpp"
#include "moecod/core/keep_modes.hpp"
#include "moecod/io/file.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/interference.hpp"

namespace moecod::examples::ablation {

namespace {

std::vector<train::Interference> interference(AnyFeatureModel& model, const train::DeviceBatch& batch) {
  const std::vector<std::vector<at::Tensor>> routers = model.router_parameters();
  std::vector<train::Interference> out(routers.size());
  if (!model.has_auxiliary_losses()) return out;
  const KeepModes keep(model);
  model.eval();
  const auto answer = model.forward(batch.images);
  std::vector<at::Tensor> all;
  for (const auto& parameters : routers) all.insert(all.end(), parameters.begin(), parameters.end());
  const std::vector<at::Tensor> task = train::gradients_of(model.head->loss(answer.maps, batch.masks).mean(), all);
  const std::vector<at::Tensor> losses = model.auxiliary_losses(answer.routing);
  auto begin = task.begin();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto end = begin + std::ptrdiff_t(routers[i].size());
    out[i] = train::interference({begin, end}, train::gradients_of(losses[i], routers[i]));
    begin = end;
  }
  return out;
}

nlohmann::ordered_json line_of(const std::vector<train::Interference>& levels, int64_t epoch) {
  nlohmann::ordered_json line{{"epoch", epoch}};
  for (const train::Interference& level : levels) {
    line["cosine"].push_back(level.cosine);
    line["ratio"].push_back(level.ratio);
  }
  return line;
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
    if (train::checkpoint_exists(stem)) return train::load_checkpoint(stem);
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
  const FeatureRun run{.folder = folder, .data = options.data, .job = {.device = options.device},
                       .about = {{"format", "pt"}, {"moecod.ablation_row", row.key()}}};
  nlohmann::ordered_json best;  // stays empty: what is scored are the last weights
  for (const FeatureStage& stage : stages) {
    if (stage.stage.number < first) continue;
    const bool continues = resumed && stage.stage.number == first;
    const int64_t epoch = continues ? int64_t(resumed->progress.at("epoch")) : 0;
    train::MetricsLog angles(folder / ("interference_stage" + std::to_string(stage.stage.number) + ".jsonl"), epoch);
    train_feature_stage<AnyFeatureModel>(model, make, stage, run, 0, continues ? &*resumed : nullptr, best,
                                         [&](const auto& result) {
                                           angles.write(line_of(interference(model, probe), result.epoch));
                                         });
  }
  model.eval();
  nlohmann::ordered_json result = score_test(
      [&](const at::Tensor& images) {
        auto answer = model.forward(images);
        return Answer{std::move(answer.maps.logits), std::move(answer.routing)};
      },
      options.data.data_root, trainer.size, trainer.batch_size, options.data.max_bad, options.device);
  result["policies"] = row.policies;
  result["base"] = row.base;
  result["seed"] = trainer.seed;
  result["stages"] = stages.size();
  result["build"] = options.build;
  add_training(result, folder);
  io::write_atomically(folder / "result.json", result.dump(1) + "\n");
}

}  // namespace moecod::examples::ablation
