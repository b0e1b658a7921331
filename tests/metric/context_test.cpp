// Context measures: the kernel, hand-computed scores, a slow version; colours and the degree of camouflage.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moecod/metric/camouflage_context_measure.hpp>

#include "tests/metric/maps.hpp"

namespace {

using namespace moecod::metric;
using namespace moecod::metric::test;

void fill(std::vector<uint8_t>& map, int64_t width, int64_t row, int64_t column, int64_t height, int64_t length) {
  for (int64_t r = row; r < row + height; ++r) {
    for (int64_t c = column; c < column + length; ++c) {
      map[r * width + c] = 255;
    }
  }
}

double context(const Maps& maps) { return ContextMeasure::of(ImageStatistics(maps.pair())); }

double completeness(double near) {
  return std::numbers::e / (std::numbers::e - 1) * (1 - std::exp(-near));
}

double combined(double precision, double recall, double balance = 1) {
  return (1 + balance) * precision * recall / (balance * precision + recall);
}

TEST(ContextKernel, OfOnePixelReachesItsNeighbours) {
  Maps maps = constant_maps(5, 5, 0, 0);
  for (const bool has_pixel : {false, true}) {
    maps.truth[7] = has_pixel ? 255 : 0;
    const ContextKernel kernel(maps.pair());
    EXPECT_EQ(kernel.rows(), 1);
    EXPECT_EQ(kernel.columns(), 1);
    const double sum = 1 + 4 * std::exp(-2) + 4 * std::exp(-4);
    EXPECT_NEAR(kernel.weights()[4], 1 / sum, 1e-15);
    EXPECT_NEAR(kernel.weights()[1], std::exp(-2) / sum, 1e-15);
    EXPECT_NEAR(kernel.weights()[0], std::exp(-4) / sum, 1e-15);
  }
}

TEST(ContextKernel, HasTheShapeOfTheForeground) {
  Maps square = constant_maps(40, 40, 0, 0);
  fill(square.truth, 40, 4, 9, 10, 10);
  const ContextKernel round(square.pair());
  EXPECT_EQ(round.rows(), 13);  // 18 / sqrt 2 = 12.7
  EXPECT_EQ(round.columns(), 13);
  // Variances 18 and 18: two offsets of one length weigh the same.
  EXPECT_NEAR(round.weights()[0], round.weights()[26], 1e-18);
  EXPECT_NEAR(round.weights()[13 * 27 + 14] / round.weights()[13 * 27 + 13], std::exp(-0.5 / 18), 1e-12);

  Maps row = constant_maps(5, 40, 0, 0);
  fill(row.truth, 40, 2, 3, 1, 30);
  const ContextKernel flat(row.pair());
  EXPECT_EQ(flat.rows(), 0);
  EXPECT_EQ(flat.columns(), 18);
  EXPECT_NEAR(flat.weights()[18 + 6] / flat.weights()[18], std::exp(-0.5), 1e-12);
}

TEST(ContextKernel, OfAnObliqueLineHasOffsetsOnItOnly) {
  Maps maps = constant_maps(30, 30, 0, 0);
  for (int64_t i = 0; i < 7; ++i) {
    maps.truth[(3 + 2 * i) * 30 + 5 + i] = 255;
  }
  const ContextKernel kernel(maps.pair());
  EXPECT_EQ(kernel.rows(), 16);    // 18 * sqrt(4 / 5) = 16.1
  EXPECT_EQ(kernel.columns(), 8);  // 18 * sqrt(1 / 5) = 8.05
  double sum = 0;
  for (int64_t row = -16; row <= 16; ++row) {
    for (int64_t column = -8; column <= 8; ++column) {
      const double weight = kernel.weights()[(row + 16) * 17 + column + 8];
      EXPECT_EQ(weight > 0, row == 2 * column);
      sum += weight;
    }
  }
  EXPECT_NEAR(sum, 1, 1e-15);
  EXPECT_NEAR(kernel.weights()[18 * 17 + 9] / kernel.weights()[16 * 17 + 8], std::exp(-5.0 / 72), 1e-14);
}

TEST(ContextMeasure, OfOnePixelByHand) {
  Maps maps = constant_maps(9, 9, 0, 0);
  maps.truth[40] = 255;
  maps.prediction[40] = 255;
  const double sum = 1 + 4 * std::exp(-2) + 4 * std::exp(-4);
  const double found = 1 / sum;
  EXPECT_NEAR(context(maps), combined(found, completeness(found)), 1e-7);
  // A neighbour predicted instead.
  maps.prediction[40] = 0;
  maps.prediction[41] = 255;
  const double beside = std::exp(-2) / sum;
  EXPECT_NEAR(context(maps), combined(beside, completeness(beside)), 1e-8);
  maps.prediction[41] = 0;
  maps.prediction[42] = 255;
  EXPECT_EQ(context(maps), 0);
}

TEST(ContextMeasure, IsDefinedForEmptyAndFullMaps) {
  EXPECT_EQ(context(constant_maps(3, 4, 100, 0)), 0);
  EXPECT_EQ(context(constant_maps(3, 4, 0, 255)), 0);
  EXPECT_EQ(context(constant_maps(3, 4, 0, 0)), 0);
  EXPECT_NEAR(context(constant_maps(3, 4, 255, 255)), 1, 1e-7);
  EXPECT_NEAR(context(constant_maps(1, 1, 255, 255)), 1, 1e-6);
  EXPECT_NEAR(context(constant_maps(20, 30, 51, 255)), combined(1, completeness(0.2)), 1e-7);
}

/// Every offset of every pixel, in float64.
double slow(const Maps& maps) {
  const ImageStatistics image(maps.pair());
  const ContextKernel kernel(maps.pair());
  const auto reflected = [](int64_t position, int64_t size) {
    while (position < 0 || position >= size) {
      position = size == 1 ? 0 : position < 0 ? -position : 2 * (size - 1) - position;
    }
    return position;
  };
  const auto near = [&](const auto& value, int64_t row, int64_t column) {
    double sum = 0;
    std::size_t weight = 0;
    for (int64_t r = row - kernel.rows(); r <= row + kernel.rows(); ++r) {
      for (int64_t c = column - kernel.columns(); c <= column + kernel.columns(); ++c) {
        const int64_t pixel = reflected(r, maps.height) * maps.width + reflected(c, maps.width);
        sum += kernel.weights()[weight++] * value(pixel);
      }
    }
    return sum;
  };
  const auto prediction = [&](int64_t pixel) { return image.value(maps.prediction[pixel]); };
  const auto truth = [&](int64_t pixel) { return maps.truth[pixel] > 128 ? 1.0 : 0.0; };
  double relevance = 0;
  double complete = 0;
  for (int64_t pixel = 0; pixel < image.size(); ++pixel) {
    const int64_t row = pixel / maps.width;
    const int64_t column = pixel % maps.width;
    relevance += prediction(pixel) * near(truth, row, column);
    complete += truth(pixel) * completeness(near(prediction, row, column));
  }
  return combined(relevance / (image.mean() * static_cast<double>(image.size())),
                  complete / static_cast<double>(image.foreground_size()));
}

TEST(ContextMeasure, AgreesWithASlowVersion) {
  for (const Maps& maps : random_set(71, 15)) {
    EXPECT_NEAR(context(maps), slow(maps), 1e-6);
  }
  Maps line = random_set(72, 1).front();
  std::fill(line.truth.begin(), line.truth.end(), 0);
  line.truth[0] = line.truth[1] = 255;
  EXPECT_NEAR(context(line), slow(line), 1e-6);
}

TEST(ContextMeasure, CamouflageWeighsPixelsOfTheTruth) {
  Maps maps = constant_maps(20, 60, 0, 0);
  fill(maps.truth, 60, 5, 5, 8, 8);
  fill(maps.truth, 60, 5, 45, 8, 8);
  fill(maps.prediction, 60, 5, 5, 8, 8);
  const ImageStatistics image(maps.pair());
  const double plain = ContextMeasure::of(image, 1.2, {});
  std::vector<double> camouflage(maps.truth.size(), 0);
  const auto weigh = [&](int64_t column, double degree) {
    for (int64_t row = 5; row < 13; ++row) {
      std::fill_n(camouflage.begin() + row * 60 + column, 8, degree);
    }
  };
  weigh(5, 1);
  EXPECT_GT(ContextMeasure::of(image, 1.2, camouflage), plain + 0.01);
  weigh(45, 1);
  EXPECT_NEAR(ContextMeasure::of(image, 1.2, camouflage), plain, 1e-12);
  weigh(5, 0);
  EXPECT_LT(ContextMeasure::of(image, 1.2, camouflage), plain - 0.01);
}

TEST(LabColor, OfKnownColours) {
  EXPECT_NEAR(lab({255, 255, 255}).l, 100, 1e-4);
  EXPECT_NEAR(lab({0, 0, 0}).l, 0, 1e-12);
  EXPECT_NEAR(lab({255, 0, 0}).l, 53.24, 0.01);
  EXPECT_NEAR(lab({255, 0, 0}).a, 80.09, 0.02);
  EXPECT_NEAR(lab({255, 0, 0}).b, 67.20, 0.02);
  EXPECT_EQ(lab_8bit({255, 255, 255}), (Rgb{255, 128, 128}));
  EXPECT_EQ(lab_8bit({0, 0, 0}), (Rgb{0, 128, 128}));
  EXPECT_EQ(lab_8bit({255, 0, 0}), (Rgb{136, 208, 195}));
  EXPECT_EQ(lab_8bit({0, 0, 255}), (Rgb{82, 207, 20}));
  // Beside a rounding of OpenCV's table.
  EXPECT_EQ(lab_8bit({0, 6, 98}), (Rgb{24, 163, 77}));
}

TEST(ColorDifference, OfTheFormulasOwnTestColours) {
  // From the table of Sharma, Wu and Dalal.
  struct Row {
    Lab first;
    Lab second;
    double difference;
  };
  for (const auto& [first, second, difference] : {Row{{50, 2.6772, -79.7751}, {50, 0, -82.7485}, 2.0425},
                                                  Row{{50, 3.1571, -77.2803}, {50, 0, -82.7485}, 2.8615},
                                                  Row{{50, -1.3802, -84.2814}, {50, 0, -82.7485}, 1.0000},
                                                  Row{{50, 0, 0}, {50, -1, 2}, 2.3669},
                                                  Row{{50, 2.4900, -0.0010}, {50, -2.4900, 0.0009}, 7.1792},
                                                  Row{{50, 2.4900, -0.0010}, {50, -2.4900, 0.0011}, 7.2195},
                                                  Row{{50, 2.5, 0}, {73, 25, -18}, 27.1492},
                                                  Row{{2.0776, 0.0795, -1.1350}, {0.9033, -0.0636, -0.5514}, 0.9082}}) {
    EXPECT_NEAR(ciede2000(first, second), difference, 5e-5);
    EXPECT_NEAR(ciede2000(second, first), difference, 5e-5);
    EXPECT_EQ(ciede2000(first, first), 0);
  }
}

/// An object of 13 x 13 pixels that patches cover wholly, in an image of one colour, with a colour of its own.
struct Hidden {
  Maps maps = constant_maps(40, 40, 0, 0);
  std::vector<uint8_t> rgb;

  Hidden(const Rgb& around, const Rgb& object) {
    fill(maps.truth, 40, 12, 12, 13, 13);
    maps.prediction = maps.truth;
    for (const uint8_t truth : maps.truth) {
      const Rgb& color = truth > 128 ? object : around;
      rgb.insert(rgb.end(), color.begin(), color.end());
    }
  }
};

TEST(CamouflageDegree, IsOneInTheColourAroundAndZeroInItsOpposite) {
  const Hidden same({90, 120, 60}, {90, 120, 60});
  const Hidden opposite({0, 0, 0}, {255, 255, 255});
  const auto of_same = CamouflageDegree::of(same.maps.pair(), same.rgb.data());
  const auto of_opposite = CamouflageDegree::of(opposite.maps.pair(), opposite.rgb.data());
  for (std::size_t pixel = 0; pixel < of_same.size(); ++pixel) {
    EXPECT_NEAR(of_same[pixel], same.maps.truth[pixel] > 128 ? 1 : 0, 1e-12);
    EXPECT_NEAR(of_opposite[pixel], 0, 1e-6);
  }
}

TEST(CamouflageDegree, PaintsWithTheNearestPatch) {
  // Left of the object its colour, elsewhere another: every patch is painted from the left.
  Hidden half({0, 0, 0}, {200, 60, 60});
  for (int64_t row = 0; row < 40; ++row) {
    for (int64_t column = 0; column < 12; ++column) {
      std::copy_n(half.rgb.begin() + 3 * (15 * 40 + 15), 3, half.rgb.begin() + 3 * (row * 40 + column));
    }
  }
  const auto degree = CamouflageDegree::of(half.maps.pair(), half.rgb.data());
  for (std::size_t pixel = 0; pixel < degree.size(); ++pixel) {
    EXPECT_NEAR(degree[pixel], half.maps.truth[pixel] > 128 ? 1 : 0, 1e-12);
  }
}

TEST(CamouflageDegree, IsZeroWithoutPatches) {
  Maps maps = constant_maps(30, 30, 0, 0);
  fill(maps.truth, 30, 9, 9, 6, 20);  // too low for a patch
  const std::vector<uint8_t> rgb(3 * maps.truth.size(), 100);
  for (const double degree : CamouflageDegree::of(maps.pair(), rgb.data())) {
    EXPECT_EQ(degree, 0);
  }
  const Maps full = constant_maps(30, 30, 0, 255);  // no ring
  EXPECT_EQ(CamouflageDegree::of(full.pair(), rgb.data())[450], 0);
}

TEST(CamouflageContextMeasure, OfEvenCamouflageIsTheContextMeasureOfItsBalance) {
  const Hidden same({90, 120, 60}, {90, 120, 60});
  const ImageStatistics image(same.maps.pair());
  EXPECT_NEAR(CamouflageContextMeasure::of(image, same.rgb.data()), ContextMeasure::of(image, 1.2, {}), 1e-12);
  EXPECT_THROW(CamouflageContextMeasure::of(image, nullptr), std::invalid_argument);
}

}  // namespace
