#pragma once
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// The squared coefficient of variation of the experts' importance.
///
///     importance_e = sum_n w_ne;   loss = weight * var(importance) / mean(importance)^2
///
/// w_ne is the gate weight of expert e for row n, zero where it was not chosen. The variance is over E (not E - 1).
///
/// Shapes: returns []. Synchronises: never. Source: Shazeer et al. 2017, arXiv 1701.06538, equation 6.
class Importance : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.01;  ///< of this term in the loss, >= 0
  };
  Importance() : Importance(Options()) {}
  explicit Importance(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    const at::Tensor importance = routing.dense_weights().sum(0);
    const at::Tensor mean = importance.mean();
    return (importance - mean).square().mean() / mean.square().clamp_min(1e-20) * options_.weight;
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
