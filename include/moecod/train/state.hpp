#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <string>
#include <unordered_map>

#include "moecod/core/state.hpp"

/// Named tensors of the training's own state: moments, averages, generators.
namespace moecod::train {

/// Copies `saved` into the tensors of `own`; both must hold the same names and shapes.
/// Errors: c10::Error that starts with `owner` and names what is missing, unknown or of another shape or type; nothing
/// is copied then.
inline void copy_state(const std::string& owner, const StateDict& saved, const StateDict& own) {
  std::unordered_map<std::string, at::Tensor> given(saved.begin(), saved.end());
  for (const auto& [name, tensor] : own) {
    const auto found = given.find(name);
    TORCH_CHECK(found != given.end(), owner, ": ", name, " is missing in the saved state");
    TORCH_CHECK(found->second.sizes() == tensor.sizes() && found->second.scalar_type() == tensor.scalar_type(), owner,
                ": ", name, " must be ", tensor.scalar_type(), " ", tensor.sizes(), ", the saved one is ",
                found->second.scalar_type(), " ", found->second.sizes());
  }
  std::unordered_map<std::string, at::Tensor> known(own.begin(), own.end());
  for (const auto& [name, tensor] : saved)
    TORCH_CHECK(known.contains(name), owner, ": the saved state holds ", name, ", which is unknown here");
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : own) at::Tensor(tensor).copy_(given.at(name));
}

/// Adds `part` to `whole`, its names behind `prefix`.
inline void add_state(StateDict& whole, const std::string& prefix, const StateDict& part) {
  for (const auto& [name, tensor] : part) whole.emplace_back(prefix + name, tensor);
}

/// What add_state put behind `prefix`; empty if nothing was.
inline StateDict part_of_state(const StateDict& whole, const std::string& prefix) {
  StateDict part;
  for (const auto& [name, tensor] : whole)
    if (name.starts_with(prefix)) part.emplace_back(name.substr(prefix.size()), tensor);
  return part;
}

}  // namespace moecod::train
