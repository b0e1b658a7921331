// Multi-scale IoU against hand-computed figures and a slow version.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <moecod/metric/multi_scale_iou.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

MultiScaleIou::Scores scores(const Maps& maps) { return MultiScaleIou::of(ImageStatistics(maps.pair())); }

TEST(MultiScaleIou, OfOnePixelByHand) {
  // The edges of one pixel are its 8 neighbours, in 8, 4, 4, 1, 1, ... cells of side 1, 2, 4, 8, 16, ...
  Maps maps = constant_maps(8, 8, 0, 0);
  maps.truth[3 * 8 + 3] = 255;
  const double missed = (1.0 / 9 / 2 + 1.0 / 5 + 1.0 / 5 + 6 * 1.0 / 2 + 1.0 / 2 / 2) / 9;
  EXPECT_NEAR(scores(maps).binary, missed, 1e-15);
  EXPECT_NEAR(scores(maps).curve[256], missed, 1e-15);
  EXPECT_NEAR(scores(maps).curve[1], missed, 1e-15);
  // At threshold 0 all is predicted: the edges are those of the image, met in cells of side 4 and more.
  const double border = (1.0 / 9 / 2 + 1.0 / 5 + 1 + 6 + 1.0 / 2) / 9;
  EXPECT_NEAR(scores(maps).curve[0], border, 1e-15);
  EXPECT_NEAR(scores(maps).adaptive, border, 1e-15);
  // Shifted by one column: of the 8 neighbours 4 are shared, those above and below the two pixels.
  maps.prediction[3 * 8 + 4] = 255;
  const double shifted = (5.0 / 9 / 2 + 1 + 1 + 6 + 1.0 / 2) / 9;
  EXPECT_NEAR(scores(maps).binary, shifted, 1e-15);
}

TEST(MultiScaleIou, IsOneForAPerfectPredictionAndForATruthWithoutEdges) {
  for (Maps maps : random_set(51, 5)) {
    maps.prediction = maps.truth;
    EXPECT_DOUBLE_EQ(scores(maps).binary, 1);
    EXPECT_DOUBLE_EQ(scores(maps).curve[255], 1);
  }
  EXPECT_DOUBLE_EQ(scores(constant_maps(5, 7, 90, 0)).binary, 1);
}

TEST(MultiScaleIou, CellsStartAtTheLowerRightCorner) {
  // 5 columns in cells of 2: the first alone. An edge is a pixel whose left and right neighbours differ.
  Maps maps = constant_maps(1, 5, 0, 0);
  maps.truth = {0, 0, 255, 0, 0};       // edges: columns 1 and 3
  maps.prediction = {0, 255, 0, 0, 0};  // edges: columns 0 and 2
  EXPECT_NEAR(scores(maps).binary, (1.0 / 3 / 2 + 2.0 / 3 + 7 + 0.5) / 9, 1e-15);
}

double half(double count) {
  if (count >= 65520) return HUGE_VAL;
  for (double unit = 1;; unit *= 2) {
    if (count / unit <= 2048) return std::nearbyint(count / unit) * unit;
  }
}

/// One binary prediction, cell by cell.
template <class Predicted>
double slow(const Maps& maps, const Predicted& predicted) {
  const auto is_edge = [&](const auto& map, int64_t row, int64_t column) {
    const auto at = [&](int64_t r, int64_t c) {
      return r >= 0 && r < maps.height && c >= 0 && c < maps.width && map(r * maps.width + c) ? 1 : 0;
    };
    int down = 0;
    int right = 0;
    for (const int side : {-1, 1}) {
      for (int along = -1; along <= 1; ++along) {
        down += side * (2 - along * along) * at(row + side, column + along);
        right += side * (2 - along * along) * at(row + along, column + side);
      }
    }
    return down != 0 || right != 0;
  };
  const auto truth = [&](int64_t pixel) { return maps.truth[pixel] > 128; };
  std::vector<double> ratios;
  for (int64_t side = 1; side <= 512; side *= 2) {
    const int64_t rows = (maps.height + side - 1) / side;
    const int64_t columns = (maps.width + side - 1) / side;
    std::vector<int> of_truth(static_cast<std::size_t>(rows * columns), 0);
    std::vector<int> of_prediction = of_truth;
    for (int64_t row = 0; row < maps.height; ++row) {
      for (int64_t column = 0; column < maps.width; ++column) {
        const int64_t cell = (maps.height - 1 - row) / side * columns + (maps.width - 1 - column) / side;
        of_truth[cell] |= is_edge(truth, row, column) ? 1 : 0;
        of_prediction[cell] |= is_edge(predicted, row, column) ? 1 : 0;
      }
    }
    double both = 0;
    double all = 0;
    for (std::size_t cell = 0; cell < of_truth.size(); ++cell) {
      both += of_truth[cell] & of_prediction[cell];
      all += of_truth[cell];
    }
    ratios.push_back((both + 1) / half(half(all) + 1));
  }
  double area = 0;
  for (std::size_t i = 1; i < ratios.size(); ++i) {
    area += (ratios[i - 1] + ratios[i]) / 2 / 9;
  }
  return area;
}

TEST(MultiScaleIou, AgreesWithASlowVersion) {
  std::vector<Maps> set = random_set(53, 20);
  std::mt19937 random(55);
  set.push_back(random_maps(random, 90, 71, 3));  // more than 2048 edges
  for (const Maps& maps : set) {
    const ImageStatistics image(maps.pair());
    const MultiScaleIou::Scores fast = MultiScaleIou::of(image);
    const auto value = [&](int64_t pixel) { return image.value(maps.prediction[pixel]); };
    for (const int threshold : {0, 1, 7, 100, 128, 254, 255, 256}) {
      EXPECT_NEAR(fast.curve[threshold],
                  slow(maps, [&](int64_t pixel) { return std::floor(value(pixel) * 255) >= threshold; }), 1e-14);
    }
    EXPECT_NEAR(fast.binary, slow(maps, [&](int64_t pixel) { return value(pixel) > 0.5; }), 1e-14);
    const double threshold = std::min(2 * image.mean(), 1.0);
    EXPECT_NEAR(fast.adaptive, slow(maps, [&](int64_t pixel) { return value(pixel) >= threshold; }), 1e-14);
  }
}

TEST(MultiScaleIou, DenominatorsAboveHalfPrecisionGiveZero) {
  // Noise of 400 x 400 has more than 65519 edges of side 1, and 40000 of side 2: the first score alone is 0.
  std::mt19937 random(57);
  Maps maps = random_maps(random, 400, 400, 2);
  maps.prediction = maps.truth;
  const double all_but_first = 8.5 / 9;
  EXPECT_NEAR(scores(maps).binary, all_but_first, 1e-3);
}

}  // namespace
