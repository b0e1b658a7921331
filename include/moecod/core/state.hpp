#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <string>
#include <utility>
#include <vector>

namespace moecod {

/// A module that holds n experts in stacked tensors below its only child; files hold them one expert a key, from
/// first_expert() on.
struct StackedStorage {
  virtual ~StackedStorage() = default;
  virtual int64_t stack_size() const = 0;
  virtual int64_t first_expert() const { return 0; }
};

/// Named tensors in a stable order: each module's own parameters and buffers, then its children's.
using StateDict = std::vector<std::pair<std::string, at::Tensor>>;

namespace detail {
inline void collect_state(const torch::nn::Module& module, const std::string& prefix, StateDict& out) {
  if (const auto* stacked = dynamic_cast<const StackedStorage*>(&module)) {
    StateDict all;
    for (const auto& child : module.children()) collect_state(*child, "", all);
    for (int64_t e = 0; e < stacked->stack_size(); ++e)
      for (const auto& [name, tensor] : all)
        out.emplace_back(prefix + std::to_string(stacked->first_expert() + e) + "." + name, tensor.select(0, e));
    return;
  }
  for (const auto& item : module.named_parameters(/*recurse=*/false)) out.emplace_back(prefix + item.key(), item.value());
  for (const auto& item : module.named_buffers(/*recurse=*/false)) out.emplace_back(prefix + item.key(), item.value());
  for (const auto& child : module.named_children()) collect_state(*child.value(), prefix + child.key() + ".", out);
}
}  // namespace detail

/// The parameters and buffers of a module under the names that files use. The tensors are views of the module's own:
/// writing to one (without gradients) writes to the module. Stacked experts appear one expert a key, as in
/// `experts.3.conv1.weight`, so that an expert trained alone loads into a stack and back.
inline StateDict state_dict(const torch::nn::Module& module) {
  StateDict out;
  detail::collect_state(module, "", out);
  return out;
}

}  // namespace moecod
