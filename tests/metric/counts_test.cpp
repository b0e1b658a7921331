// The functions of the four counts that only CountsEvaluator reports, and the figures over a whole data set.

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <moecod/metric/evaluator.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

TEST(Counts, FollowTheirFormulas) {
  const Confusion c{3, 1, 4, 2};
  EXPECT_DOUBLE_EQ(Precision::of(c), 0.75);
  EXPECT_DOUBLE_EQ(Recall::of(c), 0.6);
  EXPECT_DOUBLE_EQ(Specificity::of(c), 0.8);
  EXPECT_DOUBLE_EQ(Fpr::of(c), 0.2);
  EXPECT_DOUBLE_EQ(OverallAccuracy::of(c), 0.7);
  // chance = (4 * 5 + 6 * 7) / 100
  EXPECT_DOUBLE_EQ(Kappa::of(c), 0.08 / 0.38);
}

TEST(Counts, OfMissingClassesAreZero) {
  const Confusion empty_right{0, 0, 6, 0};
  EXPECT_EQ(Precision::of(empty_right), 0);
  EXPECT_EQ(Recall::of(empty_right), 0);
  EXPECT_EQ(Specificity::of(empty_right), 1);
  EXPECT_EQ(Fpr::of(empty_right), 0);
  EXPECT_EQ(OverallAccuracy::of(empty_right), 1);
  EXPECT_EQ(Kappa::of(empty_right), 0);
  const Confusion full_missed{0, 0, 0, 6};
  EXPECT_EQ(Recall::of(full_missed), 0);
  EXPECT_EQ(Specificity::of(full_missed), 0);
  EXPECT_EQ(Fpr::of(full_missed), 0);
  EXPECT_EQ(OverallAccuracy::of(full_missed), 0);
  EXPECT_EQ(Kappa::of(full_missed), 0);
  EXPECT_EQ(Kappa::of({6, 0, 0, 0}), 0);
}

TEST(Counts, FprAndSpecificityComplementEachOther) {
  for (const Maps& maps : random_set(31, 10)) {
    const ImageStatistics image(maps.pair());
    for (const Confusion& c : image.curve()) {
      EXPECT_NEAR(Fpr::of(c) + Specificity::of(c), 1, 1e-15);
      EXPECT_NEAR(Ber::of(c), 1 - (Recall::of(c) + Specificity::of(c)) / 2, 1e-15);
    }
  }
}

TEST(Overall, SumsCountsBeforeTheRatio) {
  Maps small = constant_maps(1, 2, 0, 255);
  small.prediction = {255, 0};
  Maps large = constant_maps(1, 8, 255, 255);
  large.prediction.back() = 0;
  large.truth.back() = 0;
  BasicEvaluator<Overall<Recall, Iou>, Binary<Recall>> evaluator;
  evaluator.add(small.pair());
  BasicEvaluator<Overall<Recall, Iou>, Binary<Recall>> other;
  other.add(large.pair());
  evaluator.merge(other);
  const auto results = evaluator.results();
  ASSERT_EQ(results.size(), 3U);
  EXPECT_EQ(results[0].name, "recall_overall");
  EXPECT_DOUBLE_EQ(results[0].value, 8.0 / 9);
  EXPECT_EQ(results[1].name, "iou_overall");
  EXPECT_DOUBLE_EQ(results[1].value, 8.0 / 9);
  EXPECT_EQ(results[2].name, "recall_binary");
  EXPECT_DOUBLE_EQ(results[2].value, 0.75);
}

TEST(CountsEvaluator, RepeatsNoNameOfTheStandardOne) {
  const Maps maps = constant_maps(3, 3, 10, 0);
  Evaluator standard;
  CountsEvaluator counts;
  standard.add(maps.pair());
  counts.add(maps.pair());
  std::vector<std::string> names;
  for (const NamedValue& metric : standard.results()) {
    names.push_back(metric.name);
  }
  for (const NamedValue& metric : counts.results()) {
    EXPECT_THAT(names, testing::Not(testing::Contains(metric.name)));
    names.push_back(metric.name);
  }
  EXPECT_EQ(names.size(), 21U + 1 + 6 * 4 + 10);
  EXPECT_THAT(names, testing::IsSupersetOf({"fmeasure_binary", "precision_max", "recall_mean", "specificity_adaptive",
                                            "fpr_binary", "oa_overall", "kappa_overall", "ber_overall"}));
}

}  // namespace
