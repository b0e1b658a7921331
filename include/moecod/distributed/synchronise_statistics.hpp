#pragma once
#include <torch/nn/module.h>

#include <memory>

#include "moecod/distributed/group.hpp"
#include "moecod/layers/stack.hpp"
#include "moecod/moe/experts/run.hpp"
#include "moecod/moe/experts/spread.hpp"

namespace moecod::distributed {

/// Makes the layers of a model that normalise over a batch do so over the rows of all ranks, in training. Mixtures
/// then also run experts that have no rows on a rank, on none, since ranks have to
/// make the same calls in the same order: each layer sends one message forward and one backward, with or without rows.
///
/// Experts that are spread over ranks (distributed/spread_experts.hpp) see all of their rows anyway and are left alone.
/// One rank with the whole batch gives the same outputs, gradients and running statistics, but for rounding.
/// Errors: dispatch::Sequential refuses to run afterwards.
inline void synchronise_statistics(torch::nn::Module& model, const std::shared_ptr<Group>& ranks) {
  const auto* spread = dynamic_cast<const experts::Spread*>(&model);
  if (spread != nullptr && spread->ranks) return;
  if (auto* layer = dynamic_cast<layers::BatchStatistics*>(&model)) layer->ranks = ranks;
  if (auto* experts = dynamic_cast<experts::Execution*>(&model)) experts->run_idle = true;
  for (const auto& child : model.children()) synchronise_statistics(*child, ranks);
}

}  // namespace moecod::distributed
