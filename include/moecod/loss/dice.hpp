#pragma once
#include <ATen/ops/sigmoid.h>

#include "moecod/loss/inputs.hpp"

namespace moecod::loss {

/// Dice loss with squared denominators:
///
///     1 - (2 sum(p m) + smooth) / (sum(p^2) + sum(m^2) + smooth),   p = sigmoid(x)
///
/// Shapes: logits x and target m in [0, 1], [n, 1, H, W] -> [n]. smooth > 0, in pixels. Synchronises: never.
/// Errors: c10::Error on other shapes. Source: Milletari et al. 2016, arXiv 1606.04797.
inline at::Tensor dice(const at::Tensor& logits, const at::Tensor& target, double smooth = 1.0) {
  check_pair("dice", logits, target);
  const at::Tensor p = at::sigmoid(full_precision(logits)), m = target.to(p.scalar_type());
  return 1 - (2 * per_image_sum(p * m) + smooth) / (per_image_sum(p * p) + per_image_sum(m * m) + smooth);
}

}  // namespace moecod::loss
