// A balancing policy of your own, held against the laws that every policy of moecod keeps. This program is a GoogleTest
// binary: the laws are its tests.
#include <moecod/moe/balance/state.hpp>
#include <moecod/moe/kind.hpp>
#include <torch/torch.h>

#include "tests/laws/balance_laws.hpp"

/// Moves the selection bias by the logarithm of each expert's load over an even one:
///     bias <- clamp(bias - rate * log((counts + 1) / (mean(counts) + 1)), -limit, limit)
class LogRatio : public moecod::balance::Counting {
 public:
  using policy_kind = moecod::kind::balance;
  struct Options {
    int64_t experts = 1;   // set by the mixture
    double rate = 0.01;    // scores per window and e-fold of load
    double limit = 5.0;    // scores
    int64_t window = 1;    // optimizer steps per update
  };

  explicit LogRatio(const Options& options) : Counting(options.experts, options.window), options_(options) {
    bias_ = register_buffer("bias", at::zeros({options.experts}, at::kFloat));
  }

  /// Added to the scores for choosing only: the gate weights do not depend on it.
  at::Tensor selection_bias() const { return bias_; }

  /// counts [E] int64, summed over micro-batches and ranks. In place and on the device; zero counts change nothing.
  void update(const at::Tensor& counts) override {
    torch::NoGradGuard no_grad;
    const at::Tensor load = counts.to(at::kFloat) + 1;
    bias_.sub_((load / load.mean()).log() * options_.rate).clamp_(-options_.limit, options_.limit);
  }

 private:
  Options options_;
  at::Tensor bias_;
};

using namespace moecod::laws;
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, BalanceLaws, LogRatio);
