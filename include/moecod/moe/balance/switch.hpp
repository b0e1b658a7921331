#pragma once
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// The auxiliary loss of Switch Transformers.
///
///     loss = weight * E * sum_e f_e * P_e
///
/// f_e is the share of the assignments that went to expert e (no gradient), P_e the mean score of expert e. It is
/// smallest, weight, when both are uniform.
///
/// Shapes: returns []. Synchronises: never. Source: Fedus et al. 2021, arXiv 2101.03961, equation 4.
class Switch : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.01;  ///< of this term in the loss, >= 0
  };
  Switch() : Switch(Options()) {}
  explicit Switch(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    const double experts = static_cast<double>(routing.num_experts());
    const at::Tensor share = routing.counts.to(routing.scores.scalar_type()) / double(routing.assignments);
    return (share * routing.scores.mean(0)).sum() * (options_.weight * experts);
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
