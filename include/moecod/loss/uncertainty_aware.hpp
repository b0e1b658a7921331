#pragma once
#include <ATen/ops/sigmoid.h>

#include <cmath>
#include <numbers>

#include "moecod/loss/bce.hpp"
#include "moecod/loss/inputs.hpp"

namespace moecod::loss {

/// How undecided a map is, from 0 (every pixel 0 or 1) to 1 (every pixel 1/2):
///
///     mean(1 - |2p - 1|^2) = mean(4 p (1 - p)),   p = sigmoid(x)
///
/// Shapes: logits x [n, 1, H, W] -> [n]. Synchronises: never. Errors: c10::Error on other shapes.
inline at::Tensor uncertainty(const at::Tensor& logits) {
  check_map("uncertainty", "logits", logits);
  const at::Tensor x = full_precision(logits);
  return 4 * per_image_mean(at::sigmoid(x) * at::sigmoid(-x));
}

/// The weight of the uncertainty at a share `progress` in [0, 1] of the training: (1 - cos(pi progress)) / 2.
inline double uncertainty_weight(double progress) { return 0.5 * (1.0 - std::cos(std::numbers::pi * progress)); }

/// Binary cross-entropy plus the uncertainty with its growing weight: bce(x, m) + lambda(progress) uncertainty(x).
///
/// Shapes: logits x and target m in [0, 1], [n, 1, H, W] -> [n]; progress in [0, 1]. Synchronises: never.
/// Errors: c10::Error on other shapes or progress outside [0, 1].
/// Source: Pang et al. 2022 (ZoomNet), arXiv 2203.02688.
inline at::Tensor uncertainty_aware(const at::Tensor& logits, const at::Tensor& target, double progress) {
  TORCH_CHECK(progress >= 0.0 && progress <= 1.0, "loss::uncertainty_aware: progress must lie in [0, 1], got ",
              progress);
  return bce(logits, target) + uncertainty_weight(progress) * uncertainty(logits);
}

}  // namespace moecod::loss
