#pragma once
#include <torch/nn/module.h>

#include <memory>

#include "moecod/core/walk.hpp"
#include "moecod/distributed/group.hpp"
#include "moecod/layers/stack.hpp"
#include "moecod/moe/experts/run.hpp"

namespace moecod::distributed {

/// Makes the layers of a model that normalise over a batch do so over the rows of all ranks, in training. Mixtures
/// then also run experts that have no rows on a rank, on none, since ranks have to
/// make the same calls in the same order: each layer sends one message forward and one backward, with or without rows.
///
/// One rank with the whole batch gives the same outputs, gradients and running statistics, but for rounding.
/// Errors: dispatch::Sequential refuses to run afterwards.
inline void synchronise_statistics(torch::nn::Module& model, const std::shared_ptr<Group>& ranks) {
  for_each_module(model, [&](const std::string&, torch::nn::Module& module) {
    if (auto* layer = dynamic_cast<layers::BatchStatistics*>(&module)) layer->ranks = ranks;
    if (auto* experts = dynamic_cast<experts::Execution*>(&module)) experts->run_idle = true;
  });
}

}  // namespace moecod::distributed
