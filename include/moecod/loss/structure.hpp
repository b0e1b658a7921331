#pragma once
#include <ATen/ops/avg_pool2d.h>

#include "moecod/loss/bce.hpp"
#include "moecod/loss/iou.hpp"

namespace moecod::loss {

/// Which cross-entropy the structure loss contains.
enum class StructureForm {
  weighted_bce,  ///< sum(w bce) / sum(w): the paper's formula
  mean_bce       ///< mean(bce): what many published programs compute, by way of a deprecated argument
};

/// Weights that stress pixels that differ from their surroundings: 1 + 5 |mean of m over 31x31 - m|.
///
/// The windows count zeros outside the picture. Two one-dimensional averages make the square one.
/// Shapes: mask m in [0, 1], [n, 1, H, W] -> the same, without gradient. Synchronises: never.
/// Errors: c10::Error on other shapes.
inline at::Tensor structure_weight(const at::Tensor& mask) {
  check_map("structure_weight", "mask", mask);
  const at::Tensor m = full_precision(mask.detach());
  const at::Tensor rows = at::avg_pool2d(m, {31, 1}, {1, 1}, {15, 0});
  return 1 + 5 * (at::avg_pool2d(rows, {1, 31}, {1, 1}, {0, 15}) - m).abs();
}

/// Structure loss: weighted cross-entropy plus weighted intersection over union, with w of structure_weight.
///
///     sum(w bce) / sum(w)  +  1 - (I + 1) / (U - I + 1),    I = sum(w p m),  U = sum(w (p + m)),  p = sigmoid(x)
///
/// StructureForm::mean_bce replaces the first term by mean(bce); the second is the same in both.
///
/// Shapes: logits x and target m in [0, 1], [n, 1, H, W] -> [n]. Synchronises: never.
/// Errors: c10::Error on other shapes. Source: Wei et al. 2020 (F3Net), arXiv 1911.11445.
/// `weight` is structure_weight(target), for callers that compare several maps with one target.
inline at::Tensor structure(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& weight,
                            StructureForm form) {
  check_pair("structure", logits, target);
  const at::Tensor cross_entropy = pixel_bce(logits, target);
  const at::Tensor pixels = form == StructureForm::mean_bce
                                ? per_image_mean(cross_entropy)
                                : per_image_sum(weight * cross_entropy) / per_image_sum(weight);
  return pixels + iou(logits, target, weight);
}

inline at::Tensor structure(const at::Tensor& logits, const at::Tensor& target,
                            StructureForm form = StructureForm::weighted_bce) {
  check_pair("structure", logits, target);
  return structure(logits, target, structure_weight(target), form);
}

}  // namespace moecod::loss
