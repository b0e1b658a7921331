#pragma once
#include <ATen/ops/rsqrt.h>

#include <numbers>

#include "moecod/loss/bce.hpp"

namespace moecod::loss {

/// Cross-entropy of a map whose logits are known up to a deviation of their own, so that doubt costs less than error.
///
/// A logit normal around x with deviation d has a mean probability close to that of one sure logit,
///
///     mean bce(x / sqrt(1 + pi d^2 / 8), m)
///
/// Where a prediction is wrong the loss falls with d, where it is right it rises: d learns the boundary.
///
/// Shapes: logits x, deviation d >= 0 and target m in [0, 1], [n, 1, H, W] -> [n]. Synchronises: never.
/// Errors: c10::Error on other shapes. Source: MacKay 1992, The evidence framework applied to classification networks;
/// learned deviations: Kendall and Gal 2017, arXiv 1703.04977.
inline at::Tensor uncertain(const at::Tensor& logits, const at::Tensor& deviation, const at::Tensor& target) {
  check_pair("uncertain", logits, target);
  check_map("uncertain", "deviation", deviation);
  TORCH_CHECK(deviation.sizes() == target.sizes(), "loss::uncertain: deviation ", deviation.sizes(), " and target ",
              target.sizes(), " must have the same shape");
  const at::Tensor d = full_precision(deviation);
  return bce(full_precision(logits) * at::rsqrt(1 + std::numbers::pi / 8 * d.square()), target);
}

}  // namespace moecod::loss
