#pragma once
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// Loss-free balancing with clamped proportional steps and momentum.
///
///     v        = (mean(counts) - counts) / mean(counts)
///     d        = rate * tanh(slope * v);  d <- d - mean(d)
///     velocity <- momentum * velocity + (1 - momentum) * d
///     bias     <- bias + velocity
///
/// The bias is added to the scores for choosing only. Near balance the steps shrink, where the sign rule of LossFree
/// goes on at full size.
///
/// Shapes: bias, velocity [E] float32. Synchronises: never. Errors: c10::Error if counts is not int64 [E].
/// Source: Arcee AI, Trinity technical report (soft-clamped momentum bias updates).
class SmoothBias : public Counting {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;    ///< set by the mixture
    double rate = 2e-3;     ///< score per window at saturation, >= 0
    double slope = 2.0;     ///< steepness of tanh per unit of relative error, > 0
    double momentum = 0.5;  ///< in [0, 1)
    int64_t window = 1;     ///< optimizer steps per update, >= 1
  };

  SmoothBias() : SmoothBias(Options()) {}
  explicit SmoothBias(const Options& options) : Counting(options.experts, options.window), options_(options) {
    bias = register_buffer("bias", at::zeros({options.experts}, at::kFloat));
    velocity = register_buffer("velocity", at::zeros({options.experts}, at::kFloat));
  }

  at::Tensor selection_bias() const { return bias; }

  void update(const at::Tensor& counts) override {
    torch::NoGradGuard no_grad;
    const at::Tensor total = counts.sum();
    const at::Tensor relative = counts.to(at::kDouble) * double(counts.size(0)) / total.clamp_min(1);
    at::Tensor step = at::tanh((1.0 - relative) * options_.slope).to(at::kFloat) * options_.rate;
    step = step - step.mean();
    const at::Tensor moved = velocity * options_.momentum + step * (1.0 - options_.momentum);
    const at::Tensor any = total.gt(0);
    velocity.copy_(at::where(any, moved, velocity));
    bias.copy_(at::where(any, bias + velocity, bias));
  }

  at::Tensor bias, velocity;

 private:
  Options options_;
};

}  // namespace moecod::balance
