#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "moecod/layers/stack.hpp"

namespace moecod::train {

/// Trainable parameters that an optimizer treats alike, with their names in the module.
struct ParameterGroup {
  double rate_factor = 1;  ///< multiplies the scheduled learning rate
  bool decays = false;     ///< subject to weight decay
  std::vector<std::string> names = {};
  std::vector<at::Tensor> parameters = {};
};

/// The parameters' gradients, in their order; missing ones become zeros.
inline std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> out;
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    out.push_back(parameter.grad());
  }
  return out;
}

/// The learning rate of everything at or below `prefix` ("router", "backbone.stages.0") is multiplied by `factor`.
/// The longest prefix that fits a parameter counts; the empty one fits all.
struct RateFactor {
  std::string prefix;
  double factor = 1;
};

namespace detail {

inline bool below(std::string_view name, std::string_view prefix) {
  return prefix.empty() || (name.starts_with(prefix) && (name.size() == prefix.size() || name[prefix.size()] == '.'));
}

/// Layers of LibTorch count by what they are as well, so that modules written without moecod's layers fit in.
inline bool weight_decays(const torch::nn::Module& module) {
  return dynamic_cast<const layers::Decays*>(&module) != nullptr ||
         dynamic_cast<const torch::nn::LinearImpl*>(&module) != nullptr ||
         dynamic_cast<const torch::nn::Conv2dImpl*>(&module) != nullptr;
}

template <class F>
void for_each_parameter(const torch::nn::Module& module, const std::string& prefix, F&& f) {
  const bool decays = weight_decays(module);
  for (const auto& item : module.named_parameters(/*recurse=*/false))
    f(prefix + item.key(), item.value(), decays && item.key() == "weight");
  for (const auto& child : module.named_children()) for_each_parameter(*child.value(), prefix + child.key() + ".", f);
}

}  // namespace detail

/// The parameters of a module that require gradients, by learning-rate factor and by weight decay.
///
/// Weight decay is for the parameter `weight` of layers that say so (layers::Decays: convolutions and linear maps,
/// single or stacked; torch::nn::Linear and Conv2d too), never for norms, biases, gates or temperatures, whatever
/// their number of dimensions. Groups come in the order of their first parameter; a parameter that the module holds
/// twice is listed once. Synchronises: never.
/// Errors: c10::Error for a prefix that names no parameter at all, trainable or not.
inline std::vector<ParameterGroup> parameter_groups(const torch::nn::Module& module,
                                                    const std::vector<RateFactor>& factors = {}) {
  std::vector<ParameterGroup> groups;
  std::vector<bool> used(factors.size(), false);
  std::unordered_set<const at::TensorImpl*> seen;
  detail::for_each_parameter(module, "", [&](const std::string& name, const at::Tensor& parameter, bool decays) {
    double factor = 1;
    std::size_t longest = 0;
    for (std::size_t i = 0; i < factors.size(); ++i) {
      if (!detail::below(name, factors[i].prefix)) continue;
      used[i] = true;
      if (factors[i].prefix.size() < longest) continue;
      longest = factors[i].prefix.size();
      factor = factors[i].factor;
    }
    if (!parameter.requires_grad() || !seen.insert(parameter.unsafeGetTensorImpl()).second) return;
    ParameterGroup* group = nullptr;
    for (ParameterGroup& candidate : groups)
      if (candidate.rate_factor == factor && candidate.decays == decays) group = &candidate;
    if (group == nullptr) group = &groups.emplace_back(ParameterGroup{.rate_factor = factor, .decays = decays});
    group->names.push_back(name);
    group->parameters.push_back(parameter);
  });
  for (std::size_t i = 0; i < factors.size(); ++i)
    TORCH_CHECK(used[i], "parameter_groups: no parameter is named '", factors[i].prefix, "' or lies below it");
  return groups;
}

}  // namespace moecod::train
