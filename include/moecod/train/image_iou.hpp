#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

namespace moecod::train {

/// Intersection over union of each picture at the threshold 0.5 of the probability; 0 where both are empty, as in
/// PySODMetrics. logits and masks [N, 1, H, W] -> [N] float32. Synchronises: never.
inline at::Tensor image_iou(const at::Tensor& logits, const at::Tensor& masks) {
  const at::Tensor p = logits.gt(0), m = masks.gt(0.5);
  const at::Tensor both = p.logical_and(m).flatten(1).sum(1).to(at::kFloat);
  const at::Tensor any = p.logical_or(m).flatten(1).sum(1).to(at::kFloat);
  return both / any.clamp_min(1);
}

}  // namespace moecod::train
