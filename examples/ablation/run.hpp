#pragma once
// One run of the ablation: a row's model with one seed, from its stages to its result.

#include <filesystem>

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
};

/// Trains the row in `folder`, or goes on with it, and writes folder/result.json at the end: the scores of the last
/// weights on the test pictures. metrics_stageN.jsonl and interference_stageN.jsonl have a line an epoch; the latter's
/// "cosine" has, at the router of each level, the cosine of the gradients of the task's and of that level's auxiliary
/// loss on 32 validation pictures, in eval mode. Errors: what training throws.
void run_row(const RunOptions& options, const RowEntry& row, const std::filesystem::path& folder);

}  // namespace moecod::examples::ablation
