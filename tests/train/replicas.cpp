// Replicas on threads: what they add up at the end of an optimizer step.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>

#include "moecod/expert/conv.hpp"
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/balance/switch.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "moecod/train/replicas.hpp"

namespace {

using namespace moecod;

template <class Balance>
using Block = Mixture<router::GlobalPool, Replicated<expert::Conv<>, 4>, select::TopK<2>, Balance, dispatch::Batched>;

/// The counts of two replicas after three pictures each.
template <class Balance>
at::Tensor counts_of_two() {
  const auto make = [] {
    typename Block<Balance>::Options options;
    options.router.channels = options.experts.channels = 8;
    return std::make_unique<Block<Balance>>(options);
  };
  const auto model = make();
  train::Replicas<Block<Balance>> replicas(*model, 2, make);
  replicas.run([](int64_t, Block<Balance>& replica) { replica.forward(at::rand({3, 8, 4, 4})); });
  at::Tensor counts = at::empty({0}, at::kLong);
  for (const auto* policy : balance::counting(*model)) counts = policy->counts.clone();
  replicas.add_counts(counts);
  return counts;
}

TEST(Replicas, CountsAreThoseOfAll) { EXPECT_EQ(counts_of_two<balance::EmaBias>().sum().item<int64_t>(), 2 * 3 * 2); }

TEST(Replicas, APolicyThatDoesNotCountHasNothingToAdd) { EXPECT_EQ(counts_of_two<balance::Switch>().numel(), 0); }

}  // namespace
