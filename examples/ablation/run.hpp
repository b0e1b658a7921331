#pragma once
// One run of the ablation: a row's model with one seed, from its stages to its result.

#include <filesystem>
#include <string>

#include "examples/ablation/row.hpp"
#include "examples/feature_recipe.hpp"
#include "examples/training_data.hpp"

namespace moecod::examples::ablation {

/// The same for every row: data, recipe, budget.
struct RunOptions {
  DataOptions data;
  FeatureRecipe recipe;
  train::TrainerOptions trainer;
  int64_t head_width = 24;
  at::Device device = at::kCPU;
  std::string build;  ///< a checksum of the program, to be recorded
};

/// Trains the row in `folder`, or goes on with it, and writes folder/result.json at the end: the scores of the last
/// weights on the test pictures (scoring.hpp), seconds a step of the last stage, and of each level the use in the last
/// epoch of training and the means of its interference.
///
/// Logs: metrics_stageN.jsonl of the trainer, and interference_stageN.jsonl with "cosine" and "ratio" an epoch, at the
/// router of each level, of the gradients of that level's auxiliary loss and of the task's on 32 validation pictures in
/// eval mode; null for policies without such a loss. Errors: what training throws.
void run_row(const RunOptions& options, const RowEntry& row, const std::filesystem::path& folder);

}  // namespace moecod::examples::ablation
