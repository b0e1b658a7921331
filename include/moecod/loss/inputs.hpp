#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

namespace moecod::loss {

/// Half and bfloat16 become float32; float32 and float64 stay. Losses compute in the result's type.
inline at::Tensor full_precision(const at::Tensor& x) {
  return x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16 ? x.to(at::kFloat) : x;
}

/// Mean over everything but the leading dimension: [n, ...] -> [n].
inline at::Tensor per_image_mean(const at::Tensor& x) { return x.flatten(1).mean(1); }

/// Sum over everything but the leading dimension: [n, ...] -> [n].
inline at::Tensor per_image_sum(const at::Tensor& x) { return x.flatten(1).sum(1); }

/// Errors: c10::Error unless `x` is a floating-point [n, 1, H, W]. `loss` and `argument` name it in the message.
inline void check_map(const char* loss, const char* argument, const at::Tensor& x) {
  TORCH_CHECK(x.defined(), "loss::", loss, ": ", argument, " is undefined; expected [n, 1, H, W]");
  TORCH_CHECK(x.dim() == 4 && x.size(1) == 1 && x.is_floating_point(), "loss::", loss, ": ", argument,
              " must be a floating-point [n, 1, H, W], got ", x.scalar_type(), " ", x.sizes());
}

/// Errors: c10::Error unless `logits` and `target` are floating-point [n, 1, H, W] of one shape.
inline void check_pair(const char* loss, const at::Tensor& logits, const at::Tensor& target) {
  check_map(loss, "logits", logits);
  check_map(loss, "target", target);
  TORCH_CHECK(logits.sizes() == target.sizes(), "loss::", loss, ": logits ", logits.sizes(), " and target ",
              target.sizes(), " must have the same shape");
}

}  // namespace moecod::loss
