#pragma once
#include <ATen/ops/dot.h>
#include <torch/autograd.h>

#include <cmath>
#include <vector>

namespace moecod::train {

/// The cosine of the angle between the gradients of two losses at the same parameters, taken as one vector:
///
///     g_t . g_a / (|g_t| |g_a|)
///
/// 1: the auxiliary loss pulls where the task pulls; 0: across; below 0: against it. This is the interference that
/// balancing without an auxiliary loss avoids (Wang et al. 2024, arXiv 2408.15664). NaN where a gradient is zero.
///
/// Leaves no gradients behind and keeps both graphs. Synchronises: yes.
inline double gradient_cosine(const at::Tensor& task, const at::Tensor& auxiliary,
                              const std::vector<at::Tensor>& parameters) {
  const auto gradients = [&](const at::Tensor& loss) {
    if (!loss.requires_grad()) return std::vector<at::Tensor>(parameters.size());
    return torch::autograd::grad({loss}, parameters, {}, /*retain_graph=*/true, /*create_graph=*/false,
                                 /*allow_unused=*/true);
  };
  const std::vector<at::Tensor> a = gradients(task), b = gradients(auxiliary);
  double product = 0, squares_a = 0, squares_b = 0;
  const auto dot = [](const at::Tensor& x, const at::Tensor& y) {
    return x.defined() && y.defined() ? at::dot(x.flatten().to(at::kDouble), y.flatten().to(at::kDouble)).item<double>()
                                      : 0.0;
  };
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    product += dot(a[i], b[i]);
    squares_a += dot(a[i], a[i]);
    squares_b += dot(b[i], b[i]);
  }
  return squares_a > 0 && squares_b > 0 ? product / std::sqrt(squares_a * squares_b) : NAN;
}

}  // namespace moecod::train
