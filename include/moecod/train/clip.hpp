#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <vector>

/// Limits on gradients, in place. Synchronises: never.
namespace moecod::train {

/// The Euclidean norm of all gradients together: a scalar on their device.
/// Errors: c10::Error if there is no gradient.
inline at::Tensor gradient_norm(const std::vector<at::Tensor>& gradients) {
  TORCH_CHECK(!gradients.empty(), "gradient_norm: expected at least one gradient, got none");
  const at::NoGradGuard no_grad;
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)));
}

/// g <- g * min(1, max_norm / (norm + 1e-6)), with `norm` that of these gradients and whatever else is clipped with them.
/// A norm that is not finite makes every gradient useless; LossScale::unscale finds it and the step is skipped.
/// Errors: c10::Error if there is no gradient or if max_norm is not positive.
inline void clip_norm(const std::vector<at::Tensor>& gradients, double max_norm, const at::Tensor& norm) {
  TORCH_CHECK(max_norm > 0, "clip_norm: max_norm must be positive, got ", max_norm);
  const at::NoGradGuard no_grad;
  at::_foreach_mul_(gradients, at::clamp_max(max_norm / (norm + 1e-6), 1.0));
}

/// The same with the norm of all these gradients together, which is returned.
inline at::Tensor clip_norm(const std::vector<at::Tensor>& gradients, double max_norm) {
  const at::Tensor norm = gradient_norm(gradients);
  clip_norm(gradients, max_norm, norm);
  return norm;
}

}  // namespace moecod::train
