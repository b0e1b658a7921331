// Skeletons, contours, simplified lines and the human correction effort.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <moecod/metric/human_correction_effort.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

/// A map drawn in text: '#' is in the set.
BinaryMap drawn(const std::vector<std::string>& rows) {
  const auto width = static_cast<int64_t>(rows[0].size());
  return {static_cast<int64_t>(rows.size()), width,
          [&](int64_t pixel) { return rows[pixel / width][pixel % width] == '#'; }};
}

std::vector<std::string> text(const BinaryMap& map) {
  std::vector<std::string> rows;
  for (int64_t row = 0; row < map.height(); ++row) {
    rows.emplace_back();
    for (int64_t column = 0; column < map.width(); ++column) {
      rows.back() += map.at(row, column) ? '#' : '.';
    }
  }
  return rows;
}

using testing::ElementsAre;

TEST(BinaryMap, GrowsAndShrinksByACross) {
  EXPECT_THAT(text(drawn({"....", ".#..", "....", "...."}).dilated()), ElementsAre(".#..", "###.", ".#..", "...."));
  // The border of the image does not erode.
  EXPECT_THAT(text(drawn({"###.", "###.", "###."}).eroded()), ElementsAre("##..", "##..", "##.."));
  EXPECT_THAT(text(drawn({"###", "#.#", "###"}).eroded()), ElementsAre("#.#", "...", "#.#"));
  EXPECT_THAT(text(drawn({"#"}).eroded()), ElementsAre("#"));
}

TEST(Skeleton, KeepsLinesAndCutsSteps) {
  EXPECT_THAT(text(skeleton(drawn({".....", ".###.", "....."}))), ElementsAre(".....", ".###.", "....."));
  EXPECT_THAT(text(skeleton(drawn({"#"}))), ElementsAre("#"));
  EXPECT_THAT(text(skeleton(drawn({"###", "..#", "..#"}))), ElementsAre("##.", "..#", "..#"));
  EXPECT_THAT(text(skeleton(drawn({"..", ".."}))), ElementsAre("..", ".."));
}

TEST(Skeleton, OfABarIsItsMiddleAndACorner) {
  // As scikit-image draws it. Without the differences from Zhang and Suen the middle alone is left.
  EXPECT_THAT(text(skeleton(drawn({".........", ".#######.", ".#######.", ".#######.", "........."}))),
              ElementsAre(".........", "......#..", ".#####...", ".........", "........."));
}

TEST(Skeleton, IsASubsetThatThinsNoFurther) {
  for (const Maps& maps : random_set(61, 40)) {
    const BinaryMap map(maps.height, maps.width, [&](int64_t pixel) { return maps.prediction[pixel] > 90; });
    const BinaryMap bones = skeleton(map);
    for (int64_t pixel = 0; pixel < map.size(); ++pixel) {
      EXPECT_LE(bones[pixel], map[pixel]);
    }
    EXPECT_EQ(skeleton(bones), bones);
  }
}

TEST(Contours, WalkAroundAPartAndItsHole) {
  const auto found = contours(drawn({"###", "#.#", "###"}));
  ASSERT_EQ(found.size(), 2U);
  EXPECT_THAT(found[0], ElementsAre(Point{0, 0}, Point{1, 0}, Point{2, 0}, Point{2, 1}, Point{2, 2}, Point{1, 2},
                                    Point{0, 2}, Point{0, 1}));
  EXPECT_THAT(found[1], ElementsAre(Point{1, 0}, Point{0, 1}, Point{1, 2}, Point{2, 1}));
}

TEST(Contours, PassBothSidesOfALine) {
  const auto found = contours(drawn({"....", ".###"}));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_THAT(found[0], ElementsAre(Point{1, 1}, Point{1, 2}, Point{1, 3}, Point{1, 2}));
  EXPECT_THAT(contours(drawn({".#."})), ElementsAre(Contour{Point{0, 1}}));
  EXPECT_TRUE(contours(drawn({"..."})).empty());
}

TEST(Contours, ComeParentsFirstAndLateSiblingsFirst) {
  const auto found = contours(drawn({"#####.#",   //
                                     "#...#..",   //
                                     "#.#.#.#",   //
                                     "#...#..",   //
                                     "#####.."}));
  std::vector<Point> starts;
  for (const Contour& contour : found) {
    starts.push_back(contour.front());
  }
  // Single pixels at the right, the lower one first; the frame, its hole, the pixel in it.
  EXPECT_THAT(starts, ElementsAre(Point{2, 6}, Point{0, 6}, Point{0, 0}, Point{1, 0}, Point{2, 2}));
}

TEST(Contours, HolesTouchByEdgesOnly) {
  // The gap in the middle reaches the outside by a corner only: it is a hole.
  EXPECT_EQ(contours(drawn({".###", "#.##", "####"})).size(), 2U);
  EXPECT_EQ(contours(drawn({"#.##", "#.##", "####"})).size(), 1U);
}

std::vector<Point> line(const std::vector<std::pair<int64_t, int64_t>>& points) {
  std::vector<Point> out;
  for (const auto& [row, column] : points) {
    out.push_back({row, column});
  }
  return out;
}

TEST(SimplifiedSize, KeepsEndsAndCorners) {
  EXPECT_EQ(simplified_size({}, 2), 0);
  EXPECT_EQ(simplified_size(line({{3, 4}}), 2), 1);
  EXPECT_EQ(simplified_size(line({{3, 4}, {3, 5}}), 2), 2);
  std::vector<Point> points;
  for (int64_t i = 0; i < 10; ++i) {
    points.push_back({0, i});
  }
  EXPECT_EQ(simplified_size(points, 2), 2);
  for (int64_t i = 1; i < 10; ++i) {
    points.push_back({i, 9});
  }
  EXPECT_EQ(simplified_size(points, 2), 3);
}

TEST(SimplifiedSize, CutsWherePointsAreFartherThanTheTolerance) {
  EXPECT_EQ(simplified_size(line({{0, 0}, {2, 5}, {0, 10}}), 2), 2);
  EXPECT_EQ(simplified_size(line({{0, 0}, {3, 5}, {0, 10}}), 2), 3);
  // Beyond an end the distance is that to the end.
  EXPECT_EQ(simplified_size(line({{0, 0}, {0, -2}, {0, 10}}), 2), 2);
  EXPECT_EQ(simplified_size(line({{0, 0}, {0, -3}, {0, 10}}), 2), 3);
}

TEST(SimplifiedSize, RejectsAClosedLine) {
  EXPECT_THROW(simplified_size(line({{0, 0}, {5, 5}, {0, 0}}), 2), std::invalid_argument);
}

double effort(const Maps& maps) { return HumanCorrectionEffort::of(ImageStatistics(maps.pair())); }

void fill(std::vector<uint8_t>& map, int64_t width, int64_t row, int64_t column, int64_t height, int64_t length) {
  for (int64_t r = row; r < row + height; ++r) {
    for (int64_t c = column; c < column + length; ++c) {
      map[r * width + c] = 255;
    }
  }
}

TEST(HumanCorrectionEffort, IsZeroWhereNothingIsWrong) {
  for (Maps maps : random_set(63, 20)) {
    maps.prediction = maps.truth;
    EXPECT_EQ(effort(maps), 0);
  }
  EXPECT_EQ(effort(constant_maps(4, 5, 0, 0)), 0);
  EXPECT_EQ(effort(constant_maps(4, 5, 255, 255)), 0);
}

TEST(HumanCorrectionEffort, OneClickDeletesAnAreaThatTouchesNothing) {
  Maps maps = constant_maps(60, 90, 0, 0);
  fill(maps.truth, 90, 5, 5, 20, 20);
  fill(maps.prediction, 90, 5, 5, 20, 20);
  fill(maps.prediction, 90, 35, 40, 20, 20);
  EXPECT_EQ(effort(maps), 1);
  fill(maps.prediction, 90, 5, 60, 25, 25);
  EXPECT_EQ(effort(maps), 2);
  // 5 erosions by a cross remove a square of 10, and forgive it, but not one of 11.
  fill(maps.prediction, 90, 40, 5, 10, 10);
  EXPECT_EQ(effort(maps), 2);
  fill(maps.prediction, 90, 40, 5, 11, 11);
  EXPECT_EQ(effort(maps), 3);
}

TEST(HumanCorrectionEffort, MissedThinPartsAreDrawnByTheirSkeleton) {
  // A line is drawn by its ends.
  Maps maps = constant_maps(9, 30, 0, 0);
  fill(maps.truth, 30, 4, 5, 1, 20);
  EXPECT_EQ(effort(maps), 2);
  // A right angle by one point more.
  Maps angle = constant_maps(30, 30, 0, 0);
  fill(angle.truth, 30, 5, 5, 1, 20);
  fill(angle.truth, 30, 5, 24, 20, 1);
  EXPECT_EQ(effort(angle), 3);
  // Half of it found: the other half is a line again.
  fill(angle.prediction, 30, 5, 5, 1, 20);
  EXPECT_EQ(effort(angle), 2);
}

TEST(HumanCorrectionEffort, IsDefinedForSmallImages) {
  for (const uint8_t prediction : {0, 255}) {
    for (const uint8_t truth : {0, 255}) {
      // One pixel: a missing one is its own skeleton, bordering on nothing; an excess survives, as no border erodes.
      EXPECT_EQ(effort(constant_maps(1, 1, prediction, truth)), prediction == truth ? 0 : 1);
    }
  }
}

}  // namespace
