#pragma once
#include "moecod/layers/linear.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::router {

/// One decision an image from its mean features.
///
///     logits = clamp(W mean_{h,w}(x) + b, -limit, limit)
///
/// Shapes: x [B, C, H, W] or [N, C] -> logits [B, E], in float32 (float64 for a float64 model). Synchronises: never.
class GlobalPool : public torch::nn::Module {
 public:
  using policy_kind = kind::router;
  using granularity = rows::Images;
  struct Options {
    int64_t experts = 1;   ///< set by the mixture
    int64_t channels = 1;  ///< C; set by the model
    double limit = 10.0;   ///< logits, > 0
  };

  GlobalPool() : GlobalPool(Options()) {}
  explicit GlobalPool(const Options& options) : limit_(options.limit) {
    TORCH_CHECK(options.limit > 0, "router::GlobalPool: limit must be positive, got ", options.limit);
    linear_ = register_module("linear", std::make_shared<layers::Linear<>>(options.channels, options.experts));
  }

  at::Tensor forward(const at::Tensor& x) {
    TORCH_CHECK(x.dim() >= 2 && x.size(1) == linear_->weight.size(1), "router::GlobalPool: expected [B, ",
                linear_->weight.size(1), ", ...], got ", x.sizes());
    const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;  // means are not rounded to half precision
    const at::Tensor pooled = x.dim() > 2 ? x.flatten(2).mean(-1, /*keepdim=*/false, type) : x;
    return layers::linear_in_float(*linear_, pooled).clamp(-limit_, limit_);
  }

 private:
  std::shared_ptr<layers::Linear<>> linear_;
  double limit_;
};

}  // namespace moecod::router
