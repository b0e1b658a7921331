#pragma once
#include <ATen/ops/dot.h>
#include <torch/autograd.h>

#include <cmath>
#include <vector>

namespace moecod::train {

/// The gradients of a loss at some parameters, undefined at those that it does not reach. Leaves none behind in the
/// parameters and keeps the graph. Synchronises: never.
inline std::vector<at::Tensor> gradients_of(const at::Tensor& loss, const std::vector<at::Tensor>& parameters) {
  if (!loss.requires_grad()) return std::vector<at::Tensor>(parameters.size());
  return torch::autograd::grad({loss}, parameters, {}, /*retain_graph=*/true, /*create_graph=*/false,
                               /*allow_unused=*/true);
}

/// How an auxiliary loss and the task pull at the same parameters: what balancing without an auxiliary loss avoids (Wang
/// et al. 2024, arXiv 2408.15664).
struct Interference {
  double cosine = NAN;  ///< g_t . g_a / (|g_t| |g_a|); below 0 the auxiliary loss pulls against the task
  double ratio = NAN;   ///< |g_a| / |g_t|: how much of the step it takes
};

/// From two sets of gradients at the same parameters, each taken as one vector. The cosine is NaN where a gradient is
/// zero, the ratio where the task's is. Synchronises: yes.
inline Interference interference(const std::vector<at::Tensor>& task, const std::vector<at::Tensor>& auxiliary) {
  double product = 0, of_task = 0, of_auxiliary = 0;
  const auto dot = [](const at::Tensor& x, const at::Tensor& y) {
    return x.defined() && y.defined() ? at::dot(x.flatten().to(at::kDouble), y.flatten().to(at::kDouble)).item<double>()
                                      : 0.0;
  };
  for (std::size_t i = 0; i < task.size(); ++i) {
    product += dot(task[i], auxiliary[i]);
    of_task += dot(task[i], task[i]);
    of_auxiliary += dot(auxiliary[i], auxiliary[i]);
  }
  Interference out;
  if (of_task > 0 && of_auxiliary > 0) out.cosine = product / std::sqrt(of_task * of_auxiliary);
  if (of_task > 0) out.ratio = std::sqrt(of_auxiliary / of_task);
  return out;
}

}  // namespace moecod::train
