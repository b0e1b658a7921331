#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <functional>
#include <vector>

#include "moecod/core/walk.hpp"
#include "moecod/moe/routing.hpp"

namespace moecod::balance {

/// A balancing policy's submodule: its buffers move with the model but are never cast, since half precision would
/// flip the sign of small differences of load.
class State : public torch::nn::Module {
 public:
  void to(torch::Device device, torch::Dtype, bool non_blocking = false) override {
    torch::nn::Module::to(device, non_blocking);
  }
  void to(torch::Dtype, bool = false) override {}
  void to(torch::Device device, bool non_blocking = false) override { torch::nn::Module::to(device, non_blocking); }
};

/// A policy that follows the load: it counts in training and is updated once per `window` optimizer steps.
///
/// A derived policy defines update(counts): counts [E] int64 of one window, over all ranks. All changes are made in
/// place and on the device; update of zero counts must change nothing.
///
/// Shapes: counts, window_counts [E] int64; window_steps [] int64. Synchronises: never.
class Counting : public State {
 public:
  Counting(int64_t experts, int64_t window) : window_(window) {
    TORCH_CHECK(experts >= 1, "balance: experts must be at least 1, got ", experts);
    TORCH_CHECK(window >= 1, "balance: window must be at least 1 optimizer step, got ", window);
    counts = register_buffer("counts", at::zeros({experts}, at::kLong));
    window_counts = register_buffer("window_counts", at::zeros({experts}, at::kLong));
    window_steps = register_buffer("window_steps", at::zeros({}, at::kLong));
  }

  /// Adds the assignments of one forward pass.
  void count(const Routing& routing) { counts.add_(routing.counts); }

  /// Ends an optimizer step with these counts (summed over micro-batches and ranks); updates when the window is full.
  /// A step of zero counts, as one that was skipped, is no step.
  void commit(const at::Tensor& step_counts) {
    TORCH_CHECK(step_counts.scalar_type() == at::kLong && step_counts.sizes() == counts.sizes(),
                "balance: counts must be int64 [", counts.size(0), "], got ", step_counts.scalar_type(), " ",
                step_counts.sizes());
    torch::NoGradGuard no_grad;
    window_counts.add_(step_counts);
    window_steps.add_(step_counts.sum().gt(0));
    const at::Tensor due = window_steps.ge(window_).to(at::kLong);
    update(window_counts * due);
    window_counts.mul_(1 - due);
    window_steps.mul_(1 - due);
  }

  virtual void update(const at::Tensor& window_counts) = 0;

  at::Tensor counts, window_counts, window_steps;

 private:
  int64_t window_;
};

/// The policies within a model that follow the load, in the order of its modules.
inline std::vector<Counting*> counting(torch::nn::Module& model) {
  std::vector<Counting*> out;
  for_each_module(model, [&](const std::string&, torch::nn::Module& module) {
    if (auto* policy = dynamic_cast<Counting*>(&module)) out.push_back(policy);
  });
  return out;
}

/// Ends an optimizer step for every mixture of a model: sums the counts over ranks with one `all_reduce` (an int64
/// vector, in place; may be empty), multiplies them by `keep` (1, or 0 for a step that was skipped; undefined: 1),
/// updates, and zeroes the counts. Call it after the last micro-batch's backward. Synchronises: never.
inline void commit(torch::nn::Module& model, const std::function<void(at::Tensor&)>& all_reduce = {},
                   const at::Tensor& keep = {}) {
  const auto policies = counting(model);
  if (policies.empty()) return;
  torch::NoGradGuard no_grad;
  std::vector<at::Tensor> all;
  for (const auto* policy : policies) all.push_back(policy->counts);
  at::Tensor flat = at::cat(all);
  if (all_reduce) all_reduce(flat);
  if (keep.defined()) flat.mul_(keep.to(at::kLong));
  int64_t begin = 0;
  for (auto* policy : policies) {
    policy->commit(flat.slice(0, begin, begin + policy->counts.size(0)));
    begin += policy->counts.size(0);
    policy->counts.zero_();
  }
}

}  // namespace moecod::balance
