#pragma once
#include <ATen/ops/logsumexp.h>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// Keeps the router's logits small.
///
///     loss = weight * mean_n( logsumexp_e(logits_n)^2 )
///
/// Shapes: returns []. Synchronises: never. Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, equation 5.
class RouterZ : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.001;  ///< of this term in the loss, >= 0
  };
  RouterZ() : RouterZ(Options()) {}
  explicit RouterZ(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    return at::logsumexp(routing.logits, -1).square().mean() * options_.weight;
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
