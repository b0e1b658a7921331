#pragma once
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>

#include <cmath>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// The entropy of the batch's mean distribution over experts, maximised: it balances without blurring single rows.
///
///     loss = weight * ( log E - H(P) ),   P_e = mean_n softmax(logits)_ne
///
/// log P is taken as logsumexp over rows of log_softmax, so small probabilities keep their gradients. Zero when P is
/// uniform.
///
/// Shapes: returns []. Synchronises: never. Source: the marginal term of mutual-information objectives, e.g. Bridle et
/// al. 1991.
class MarginalEntropy : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.01;  ///< of this term in the loss, >= 0
  };
  MarginalEntropy() : MarginalEntropy(Options()) {}
  explicit MarginalEntropy(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    const at::Tensor log_p = at::logsumexp(at::log_softmax(routing.logits, -1), 0) - std::log(double(routing.rows()));
    return ((log_p.exp() * log_p).sum() + std::log(double(routing.num_experts()))) * options_.weight;
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
