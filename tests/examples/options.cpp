// What the programs make of their flags: those of the policies compiled, and the stages of the two-stage recipe.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "examples/ablation/settings.hpp"
#include "examples/feature_recipe.hpp"
#include "examples/policy_options.hpp"
#include "moecod/train/flags.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;

template <class Balance>
std::vector<std::string> flags_of() {
  BalanceFlags<Balance> flags;
  std::vector<std::string> out;
  for_each_option(flags, [&](const std::string& flag, auto&, const auto&, auto) { out.push_back(flag); });
  return out;
}

TEST(BalanceFlags, AreThoseThatThePolicyHas) {
  using Flags = std::vector<std::string>;
  EXPECT_EQ(flags_of<balance::EmaBias>(), (Flags{"bias-rate", "bias-window", "bias-decay", "bias-limit"}));
  EXPECT_EQ(flags_of<balance::LossFree>(), (Flags{"bias-rate", "bias-window"}));
  EXPECT_EQ(flags_of<balance::Switch>(), Flags());
  EXPECT_EQ(flags_of<balance::None>(), Flags());
}

TEST(BalanceFlags, SetThePolicysOwnOptions) {
  BalanceFlags<balance::EmaBias> flags;
  EXPECT_EQ(train::options_to_json(flags)["bias-limit"], balance::EmaBias::Options().limit);
  train::options_from_json({{"bias-rate", 0.5}}, flags);
  const balance::EmaBias::Options options = flags;
  EXPECT_EQ(options.rate, 0.5);
}

TEST(BalanceFlags, ShortRunsSettleThem) {
  BalanceFlags<balance::EmaBias> flags;
  ablation::settle(static_cast<balance::EmaBias::Options&>(flags));
  EXPECT_EQ(flags.limit, 20);
}

std::vector<int64_t> epochs_of(int64_t epochs, int64_t frozen, bool progressive) {
  train::TrainerOptions trainer;
  trainer.epochs = epochs;
  std::vector<int64_t> out;
  for (const auto& stage : feature_stages("pvt_v2_b0", {.stage1_epochs = frozen, .progressive_unfreeze = progressive}, trainer))
    out.push_back(stage.trainer.epochs);
  return out;
}

TEST(FeatureStages, ProgressiveUnfreezingTakesATenthEachAndAtLeastAnEpoch) {
  EXPECT_EQ(epochs_of(200, 40, false), (std::vector<int64_t>{40, 160}));
  EXPECT_EQ(epochs_of(200, 40, true), (std::vector<int64_t>{40, 16, 16, 128}));
  EXPECT_EQ(epochs_of(10, 1, true), (std::vector<int64_t>{1, 1, 1, 7}));
  EXPECT_EQ(epochs_of(3, 0, true), (std::vector<int64_t>{1, 1, 1}));
  EXPECT_NE(test::error_of([] { epochs_of(3, 1, true); }).find("at least 3 epochs"), std::string::npos);
}

}  // namespace
