#pragma once
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/core/walk.hpp"
#include "moecod/distributed/group.hpp"
#include "moecod/moe/experts/spread.hpp"

namespace moecod::distributed {

namespace detail {

/// Calls f(module, storage) for the experts within a model whose mixture's dispatcher can run them spread.
template <class F>
void for_each_spread(torch::nn::Module& model, F&& f) {
  for_each_module(model, [&](const std::string&, torch::nn::Module& module) {
    auto* storage = dynamic_cast<experts::Spread*>(&module);
    if (storage != nullptr && storage->wanted) f(module, *storage);
  });
}

/// Calls f for a module and those below it, but for experts that are spread over ranks.
template <class F>
void visit_shared(const torch::nn::Module& module, F&& f) {
  const auto* spread = dynamic_cast<const experts::Spread*>(&module);
  if (spread != nullptr && spread->ranks) return;
  f(module);
  for (const auto& child : module.children()) visit_shared(*child, f);
}

}  // namespace detail

/// Whether a model has experts that are spread over ranks.
inline bool has_spread_experts(torch::nn::Module& model) {
  bool found = false;
  detail::for_each_spread(model, [&](auto&, const experts::Spread& storage) { found = found || storage.ranks; });
  return found;
}

/// The parameters of experts that are spread over ranks: this rank's own, with no counterpart on the others.
inline std::vector<at::Tensor> spread_parameters(torch::nn::Module& model) {
  std::vector<at::Tensor> out;
  detail::for_each_spread(model, [&](torch::nn::Module& module, const experts::Spread& storage) {
    if (!storage.ranks) return;
    for (const at::Tensor& parameter : module.parameters()) out.push_back(parameter);
  });
  return out;
}

/// The parameters that all ranks hold.
inline std::vector<at::Tensor> shared_parameters(const torch::nn::Module& model) {
  std::vector<at::Tensor> out;
  detail::visit_shared(model, [&](const torch::nn::Module& module) {
    for (const at::Tensor& parameter : module.parameters(/*recurse=*/false)) out.push_back(parameter);
  });
  return out;
}

/// Gives every rank the buffers of rank 0, in place, but for those of experts that are spread over ranks.
inline void share_buffers(Group& group, const torch::nn::Module& model) {
  if (group.world() == 1) return;
  std::vector<at::Tensor> out;
  detail::visit_shared(model, [&](const torch::nn::Module& module) {
    for (const at::Tensor& buffer : module.buffers(/*recurse=*/false)) out.push_back(buffer);
  });
  group.broadcast(out);
}

/// Leaves every rank its share of the experts of mixtures under dispatch::ExpertParallel: of E experts and W ranks, rank r
/// keeps r E / W and those that follow. The model must be the same on all ranks (share_model). The gradient of what is spread
/// needs no reduction: it is the mean over the ranks' losses, as that of everything else is after average_gradients.
/// Errors: c10::Error if W does not divide E. Optimizers and averages must be made afterwards.
inline void spread_experts(torch::nn::Module& model, const std::shared_ptr<Group>& group) {
  const int64_t world = group->world();
  if (world == 1) return;
  detail::for_each_spread(model, [&](torch::nn::Module&, experts::Spread& storage) {
    if (storage.ranks) return;
    const int64_t experts = storage.stack_size(), here = experts / world, first = group->rank() * here;
    TORCH_CHECK(experts % world == 0, "spread_experts: ", experts, " experts cannot be spread evenly over ", world,
                " ranks");
    storage.hold(first, here, [&](const at::Tensor& all) { return all.slice(0, first, first + here).clone(); });
    storage.ranks = group;
  });
}

/// The inverse of spread_experts: every rank holds all experts, as to evaluate or to save them. To be called on every rank.
inline void gather_experts(torch::nn::Module& model) {
  detail::for_each_spread(model, [&](torch::nn::Module&, experts::Spread& storage) {
    if (!storage.ranks) return;
    Group& group = *storage.ranks;
    storage.hold(0, storage.stack_size() * group.world(),
                 [&](const at::Tensor& mine) { return group.gather(mine).flatten(0, 1); });
    storage.ranks = nullptr;
  });
}

/// All experts of a model on every rank while this lives, where they were spread.
class GatheredExperts {
 public:
  GatheredExperts(torch::nn::Module& model, std::shared_ptr<Group> group) : model_(model) {
    if (!has_spread_experts(model)) return;
    group_ = std::move(group);
    gather_experts(model);
  }
  GatheredExperts(const GatheredExperts&) = delete;
  GatheredExperts& operator=(const GatheredExperts&) = delete;
  ~GatheredExperts() {
    if (group_) spread_experts(model_, group_);
  }

 private:
  torch::nn::Module& model_;
  std::shared_ptr<Group> group_;
};

}  // namespace moecod::distributed
