// Components, objects and their boxes, and the metrics over them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <moecod/metric/evaluator.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

void fill(std::vector<uint8_t>& map, int64_t width, const Box& box, uint8_t level) {
  for (int64_t row = box.top; row < box.bottom; ++row) {
    std::fill_n(map.begin() + row * width + box.left, box.right - box.left, level);
  }
}

/// A large object of 10 x 10 that is found and a small one of 5 x 10 that is not, on 20 x 30 pixels.
Maps one_of_two_found() {
  Maps maps = constant_maps(20, 30, 0, 0);
  fill(maps.truth, 30, {0, 0, 10, 10}, 255);
  fill(maps.truth, 30, {12, 15, 17, 25}, 255);
  fill(maps.prediction, 30, {0, 0, 10, 10}, 255);
  return maps;
}

double figure(const SizeInvariantEvaluator& evaluator, const std::string& name) {
  for (const NamedValue& metric : evaluator.results()) {
    if (metric.name == name) {
      return metric.value;
    }
  }
  throw std::invalid_argument("no metric " + name);
}

SizeInvariantEvaluator evaluated(const Maps& maps) {
  SizeInvariantEvaluator evaluator;
  evaluator.add(maps.pair());
  return evaluator;
}

TEST(Components, AreNumberedRowByRow) {
  // A checkerboard of 2 x 3: apart by edges, together by corners.
  const std::vector<int> set{0, 1, 0, 1, 0, 1};
  const auto contains = [&](int64_t pixel) { return set[pixel] != 0; };
  const Components apart = connected_components(2, 3, Connectivity::kEdges, contains);
  EXPECT_EQ(apart.count, 3);
  EXPECT_THAT(apart.labels, testing::ElementsAre(0, 1, 0, 2, 0, 3));
  const Components together = connected_components(2, 3, Connectivity::kCorners, contains);
  EXPECT_EQ(together.count, 1);
  EXPECT_THAT(together.labels, testing::ElementsAre(0, 1, 0, 1, 0, 1));
}

TEST(Components, DoNotWrapAroundTheSides) {
  const std::vector<int> set{0, 0, 1, 1, 0, 0};
  const auto contains = [&](int64_t pixel) { return set[pixel] != 0; };
  EXPECT_EQ(connected_components(2, 3, Connectivity::kCorners, contains).count, 2);
}

TEST(Targets, AreTheComponentsOfFiftyPixelsOrTheLargest) {
  Maps maps = constant_maps(20, 30, 0, 0);
  EXPECT_TRUE(targets(maps.pair()).empty());
  fill(maps.truth, 30, {0, 0, 2, 2}, 255);
  fill(maps.truth, 30, {5, 0, 6, 3}, 255);
  fill(maps.truth, 30, {9, 9, 11, 11}, 255);
  EXPECT_THAT(targets(maps.pair()), testing::ElementsAre(Box{0, 0, 2, 2}, Box{9, 9, 11, 11}));
  fill(maps.truth, 30, {13, 0, 20, 7}, 255);  // 49 pixels: the one largest
  EXPECT_THAT(targets(maps.pair()), testing::ElementsAre(Box{13, 0, 20, 7}));
  fill(maps.truth, 30, {14, 10, 19, 20}, 255);  // 50 pixels: alone
  EXPECT_THAT(targets(maps.pair()), testing::ElementsAre(Box{14, 10, 19, 20}));
  fill(maps.truth, 30, {0, 20, 10, 26}, 255);
  EXPECT_THAT(targets(maps.pair()), testing::ElementsAre(Box{0, 20, 10, 26}, Box{14, 10, 19, 20}));
}

TEST(SizeInvariant, WeighsObjectsAlike) {
  const Maps maps = one_of_two_found();
  const SizeInvariantEvaluator evaluator = evaluated(maps);
  EXPECT_DOUBLE_EQ(Iou::of(ImageStatistics(maps.pair()).binary()), 100.0 / 150);
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_iou_binary"), 0.5);
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_iou_overall_binary"), 100.0 / 150);
  // The object not found scores 50 / 600 at threshold 0, where all is predicted, and 0 above.
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_iou_max"), (1 + 50.0 / 600) / 2);
  // On the curve over all objects that threshold gives the mean of 100 / 600 and 50 / 600, the others 1 / 2.
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_iou_overall_max"), 0.5);
  EXPECT_NEAR(figure(evaluator, "si_iou_mean"), (255 * 0.5 + 0.125) / 256, 1e-15);
  EXPECT_NEAR(figure(evaluator, "si_iou_overall_mean"), (255 * 0.5 + 0.125) / 256, 1e-15);
  // Around the object not found the mean is 0, so the adaptive threshold is too.
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_iou_adaptive"), (1 + 50.0 / 600) / 2);
}

TEST(SizeInvariant, MaeWeighsTheRestByItsShare) {
  // 450 pixels of 600 are in no box, so r = 3; the boxes' errors are 0 and 1, that of the rest 0.
  const SizeInvariantEvaluator evaluator = evaluated(one_of_two_found());
  EXPECT_DOUBLE_EQ(figure(evaluator, "si_mae"), 1.0 / 5);
  Maps noisy = one_of_two_found();
  fill(noisy.prediction, 30, {10, 0, 12, 15}, 255);  // 30 of the rest's pixels
  EXPECT_DOUBLE_EQ(figure(evaluated(noisy), "si_mae"), (1 + 3 * 30.0 / 450) / 5);
}

TEST(SizeInvariant, OverlappingBoxesCountTheirPixelsInBoth) {
  // Two Ls of one size, neither of which reaches 50 pixels; their boxes share the middle 2 x 2.
  Maps maps = constant_maps(4, 4, 0, 0);
  maps.truth = {255, 255, 255, 0,    //
                255, 0,   0,   0,    //
                255, 0,   0,   255,  //
                0,   255, 255, 255};
  maps.truth[7] = 255;
  ASSERT_THAT(targets(maps.pair()), testing::ElementsAre(Box{0, 0, 3, 3}, Box{1, 1, 4, 4}));
  // All predictions 0: 5 of 9 pixels are wrong in each box, none of the 2 in the rest; r = 2 / 14.
  EXPECT_DOUBLE_EQ(figure(evaluated(maps), "si_mae"), 2 * 5.0 / 9 / (2 + 2.0 / 14));
}

TEST(SizeInvariant, WithoutObjectsIsThePlainMetric) {
  const Maps maps = constant_maps(2, 3, 51, 0);
  EXPECT_DOUBLE_EQ(figure(evaluated(maps), "si_mae"), 0.2);
  EXPECT_EQ(figure(evaluated(maps), "si_specificity_binary"), 1);
  EXPECT_EQ(figure(evaluated(maps), "si_iou_max"), 0);
}

TEST(SizeInvariant, BoxesThatLeaveNothingAreDefined) {
  const Maps full = constant_maps(2, 3, 51, 255);
  EXPECT_DOUBLE_EQ(figure(evaluated(full), "si_mae"), 0.8);
  EXPECT_EQ(figure(evaluated(full), "si_recall_max"), 1);
  Maps frame = constant_maps(5, 5, 0, 255);
  fill(frame.truth, 5, {1, 1, 4, 4}, 0);
  EXPECT_DOUBLE_EQ(figure(evaluated(frame), "si_mae"), 16.0 / 25);
}

TEST(SizeInvariant, OneObjectOverTheWholeImageIsThePlainMetric) {
  for (Maps maps : random_set(41, 10)) {
    std::fill(maps.truth.begin(), maps.truth.end(), 255);
    const ImageStatistics image(maps.pair());
    EXPECT_NEAR(figure(evaluated(maps), "si_recall_adaptive"), Recall::of(image.adaptive()), 1e-14);
    EXPECT_NEAR(figure(evaluated(maps), "si_mae"), Mae::of(image), 1e-14);
  }
}

TEST(SizeInvariant, OrderAndSplitDoNotChangeABit) {
  const std::vector<Maps> set = random_set(43, 12);
  SizeInvariantEvaluator whole;
  SizeInvariantEvaluator parts[2];
  for (std::size_t i = 0; i < set.size(); ++i) {
    whole.add(set[i].pair());
    parts[i % 2].add(set[i].pair());
  }
  parts[1].merge(parts[0]);
  const auto expected = whole.results();
  const auto merged = parts[1].results();
  ASSERT_EQ(merged.size(), 1U + 10 * 7);
  for (std::size_t i = 0; i < merged.size(); ++i) {
    EXPECT_EQ(merged[i].name, expected[i].name);
    EXPECT_EQ(merged[i].value, expected[i].value) << merged[i].name;
  }
}

}  // namespace
