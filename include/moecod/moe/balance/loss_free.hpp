#pragma once
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// Loss-free balancing: a bias on the selection that steps against the sign of the load's error.
///
///     d    = rate * sign(mean(counts) - counts)
///     bias <- bias + d [- mean(d) if centred]
///
/// The bias is added to the scores for choosing only; gate weights do not see it. Uncentred sign steps can drift,
/// so centring is the default.
///
/// Shapes: bias [E] float32. Synchronises: never. Errors: c10::Error if counts is not int64 [E].
/// Source: Wang et al. 2024, arXiv 2408.15664; centring as in torchtitan.
class LossFree : public Counting {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double rate = 1e-3;   ///< score per window; a score gap g takes about g / rate windows to close
    bool centred = true;
    int64_t window = 1;   ///< optimizer steps per update, >= 1
  };

  LossFree() : LossFree(Options()) {}
  explicit LossFree(const Options& options) : Counting(options.experts, options.window), options_(options) {
    bias = register_buffer("bias", at::zeros({options.experts}, at::kFloat));
  }

  at::Tensor selection_bias() const { return bias; }

  void update(const at::Tensor& counts) override {
    torch::NoGradGuard no_grad;
    // sign(mean - counts) in integers: E * mean is the sum, exactly.
    at::Tensor step = (counts.sum() - counts * counts.size(0)).sign().to(at::kFloat) * options_.rate;
    if (options_.centred) step = step - step.mean();
    bias.add_(step);
  }

  at::Tensor bias;

 private:
  Options options_;
};

}  // namespace moecod::balance
