#pragma once
#include <ATen/ops/log_softmax.h>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// The mean entropy of each row's distribution over experts; minimised, it makes decisions sharp.
///
///     loss = weight * mean_n( -sum_e p_ne log p_ne ),   p = softmax(logits)
///
/// It does not balance: it is the camouflage recipe's old term, here for ablations. (That recipe's other term, the
/// squared error of the counted usage, comes from a count, has no gradient, and is not offered.)
///
/// Shapes: returns []. Synchronises: never. Source: docs/sources.md, the camouflage recipe.
class RowEntropy : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.001;  ///< of this term in the loss, >= 0
  };
  RowEntropy() : RowEntropy(Options()) {}
  explicit RowEntropy(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    const at::Tensor log_p = at::log_softmax(routing.logits, -1);
    return -(log_p.exp() * log_p).sum(-1).mean() * options_.weight;
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
