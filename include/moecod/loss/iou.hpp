#pragma once
#include <ATen/ops/sigmoid.h>

#include "moecod/loss/inputs.hpp"

namespace moecod::loss {

/// Soft intersection over union, each pixel weighted by w (undefined: 1):
///
///     1 - (I + 1) / (U - I + 1),   I = sum(w p m),  U = sum(w (p + m)),  p = sigmoid(x)
///
/// The ones keep it defined, and 0 for a perfect empty prediction, when the mask is empty.
///
/// Shapes: logits x and target m in [0, 1], [n, 1, H, W] -> [n]; weight like them. Synchronises: never.
/// Errors: c10::Error on other shapes.
inline at::Tensor iou(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& weight = {}) {
  check_pair("iou", logits, target);
  const at::Tensor p = at::sigmoid(full_precision(logits)), m = target.to(p.scalar_type());
  const auto weighted_sum = [&](const at::Tensor& x) { return per_image_sum(weight.defined() ? x * weight : x); };
  const at::Tensor intersection = weighted_sum(p * m), both = weighted_sum(p + m);
  return 1 - (intersection + 1) / (both - intersection + 1);
}

}  // namespace moecod::loss
