#pragma once
#include <ATen/ops/binary_cross_entropy_with_logits.h>

#include "moecod/loss/inputs.hpp"

namespace moecod::loss {

/// Binary cross-entropy of each pixel: -m log sigmoid(x) - (1 - m) log sigmoid(-x), finite for every finite x.
///
/// Shapes: logits x and target m in [0, 1], [n, 1, H, W] -> [n, 1, H, W], float32 (float64 if both are).
/// Synchronises: never. Errors: c10::Error on other shapes.
inline at::Tensor pixel_bce(const at::Tensor& logits, const at::Tensor& target) {
  check_pair("pixel_bce", logits, target);
  const at::Tensor x = full_precision(logits);
  return at::binary_cross_entropy_with_logits(x, target.to(x.scalar_type()), {}, {}, at::Reduction::None);
}

/// Binary cross-entropy averaged over the pixels of each image.
///
/// Shapes: logits and target in [0, 1], [n, 1, H, W] -> [n]. Synchronises: never.
/// Errors: c10::Error on other shapes.
inline at::Tensor bce(const at::Tensor& logits, const at::Tensor& target) {
  return per_image_mean(pixel_bce(logits, target));
}

}  // namespace moecod::loss
