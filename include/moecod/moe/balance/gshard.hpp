#pragma once
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// The auxiliary loss of GShard, over first choices.
///
///     loss = weight * (1/E) * sum_e (c_e / N) * m_e
///
/// c_e counts the rows whose first choice is expert e (no gradient), m_e is the mean score of expert e.
///
/// Shapes: returns []. Synchronises: never. Source: Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1.
class GShard : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    double weight = 0.01;  ///< of this term in the loss, >= 0
  };
  GShard() : GShard(Options()) {}
  explicit GShard(const Options& options) : options_(options) {}

  at::Tensor loss(const Routing& routing) const {
    const at::Tensor first = count_assignments(routing.first_choice(), routing.num_experts());
    const at::Tensor share = first.to(routing.scores.scalar_type()) / double(routing.rows());
    return (share * routing.scores.mean(0)).mean() * options_.weight;
  }

 private:
  Options options_;
};

}  // namespace moecod::balance
