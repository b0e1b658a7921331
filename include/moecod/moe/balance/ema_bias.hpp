#pragma once
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// Bias balancing with an exponential moving average of the load; no auxiliary loss.
///
/// After each window, with f the share of assignments per expert,
///
///     usage <- decay * usage + (1 - decay) * f
///     bias  <- clamp(bias - rate * (usage - 1/E), -limit, limit)
///
/// The bias is added to the logits, so it moves the gate weights as well as the selection (LossFree moves the
/// selection only). The usage starts at 1/E.
///
/// Shapes: bias, usage [E] float32, on the module's device. Synchronises: never.
/// Errors: c10::Error if counts is not int64 [E].
/// Source: docs/sources.md, the camouflage recipe; compare Wang et al. 2024, arXiv 2408.15664.
class EmaBias : public Counting {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double rate = 0.01;   ///< logits per window and unit of excess share, >= 0
    double decay = 0.9;   ///< in [0, 1)
    double limit = 5.0;   ///< logits, > 0; cannot bring together logits that are more than twice this apart
    int64_t window = 1;   ///< optimizer steps per update, >= 1
  };

  EmaBias() : EmaBias(Options()) {}
  explicit EmaBias(const Options& options) : Counting(options.experts, options.window), options_(options) {
    TORCH_CHECK(options.rate >= 0 && options.decay >= 0 && options.decay < 1 && options.limit > 0,
                "balance::EmaBias: expected rate >= 0, decay in [0, 1) and limit > 0, got ", options.rate, ", ",
                options.decay, " and ", options.limit);
    bias = register_buffer("bias", at::zeros({options.experts}, at::kFloat));
    usage = register_buffer("usage", at::full({options.experts}, 1.0 / double(options.experts), at::kFloat));
  }

  at::Tensor logit_bias() const { return bias; }

  void update(const at::Tensor& counts) override {
    torch::NoGradGuard no_grad;
    const at::Tensor total = counts.sum();
    const at::Tensor share = counts.to(at::kDouble) / total.clamp_min(1);
    const at::Tensor moved = usage * options_.decay + share.to(at::kFloat) * (1.0 - options_.decay);
    const at::Tensor any = total.gt(0);
    usage.copy_(at::where(any, moved, usage));
    const at::Tensor shifted =
        (bias - options_.rate * (usage - 1.0 / double(usage.size(0)))).clamp(-options_.limit, options_.limit);
    bias.copy_(at::where(any, shifted, bias));
  }

  at::Tensor bias, usage;

 private:
  Options options_;
};

}  // namespace moecod::balance
