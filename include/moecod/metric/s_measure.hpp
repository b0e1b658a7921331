#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/pairwise_sum.hpp>

namespace moecod::metric {

/// Structure measure: max(0, (object + region) / 2).
///
/// object: g s(v on the foreground) + (1 - g) s(1 - v on the background), g the foreground's share of the image,
///         s(v) = 2 mu / (mu^2 + 1 + sigma + eps), sigma the sample standard deviation (0 for one pixel).
/// region: the image is cut after the row and the column of the foreground's centroid (rounded half to even); the
///         similarity of each of the four blocks is weighted by its area. With means x, y and variances and
///         covariance over N - 1 + eps:
///         4 x y s_xy / ((x^2 + y^2)(s_x + s_y) + eps); if the numerator is 0: 1 if the rest is 0 too, else 0.
/// Truth empty: 1 - mean(v). Truth full: mean(v). Range [0, 1], 1 is best.
///
/// If the centroid lies on the last row or column, blocks are empty. The reference then returns NaN, which would
/// spoil the mean of a whole data set; here an empty block has no area and adds nothing, the limit of the formula.
/// A block of constant v keeps the reference's behaviour to the bit: it counts as constant only if the mean that
/// NumPy's summation gives equals v.
/// Source: Fan et al., Structure-measure, ICCV 2017; PySODMetrics, Smeasure.
struct SMeasure {
  static constexpr const char* name = "smeasure";

  static double of(const ImageStatistics& image) {
    if (image.foreground_size() == 0) {
      return 1 - image.mean();
    }
    if (image.background_size() == 0) {
      return image.mean();
    }
    return std::max(0.0, 0.5 * object(image) + 0.5 * region(image));
  }

 private:
  /// Exact integer moments of the levels u and of the truth g over one block.
  struct Moments {
    int64_t u = 0;
    int64_t uu = 0;
    int64_t ug = 0;
    int64_t g = 0;
  };

  struct Block {
    int64_t top = 0;
    int64_t left = 0;
    int64_t height = 0;
    int64_t width = 0;

    int64_t size() const { return height * width; }
  };

  static double object(const ImageStatistics& image) {
    const double share = static_cast<double>(image.foreground_size()) / static_cast<double>(image.size());
    const double foreground = object_similarity(image.foreground_levels(), image.foreground_size(),
                                                [&](uint8_t level) { return image.value(level); });
    const double background = object_similarity(image.background_levels(), image.background_size(),
                                                [&](uint8_t level) { return 1 - image.value(level); });
    return foreground * share + background * (1 - share);
  }

  template <class Value>
  static double object_similarity(const ImageStatistics::Histogram& levels, int64_t size, const Value& value) {
    const auto weighted_sum = [&](const auto& term) {
      double sum = 0;
      for (int level = 0; level < ImageStatistics::kLevels; ++level) {
        sum += static_cast<double>(levels[level]) * term(value(static_cast<uint8_t>(level)));
      }
      return sum;
    };
    const double mean = weighted_sum([](double v) { return v; }) / static_cast<double>(size);
    const double squares = weighted_sum([&](double v) { return (v - mean) * (v - mean); });
    const double deviation = size > 1 ? std::sqrt(squares / static_cast<double>(size - 1)) : 0;
    return 2 * mean / (mean * mean + 1 + deviation + kEpsilon);
  }

  static double region(const ImageStatistics& image) {
    const MapPair& pair = image.pair();
    int64_t row_sum = 0;
    int64_t column_sum = 0;
    for (int64_t row = 0; row < pair.height; ++row) {
      int64_t in_row = 0;
      for (int64_t column = 0; column < pair.width; ++column) {
        const int64_t foreground = pair.is_foreground(row * pair.width + column) ? 1 : 0;
        in_row += foreground;
        column_sum += foreground * column;
      }
      row_sum += in_row * row;
    }
    // nearbyint rounds half to even, the default rounding mode.
    const auto count = static_cast<double>(image.foreground_size());
    const int64_t upper = static_cast<int64_t>(std::nearbyint(static_cast<double>(row_sum) / count)) + 1;
    const int64_t left = static_cast<int64_t>(std::nearbyint(static_cast<double>(column_sum) / count)) + 1;
    const int64_t lower = pair.height - upper;
    const int64_t right = pair.width - left;

    const std::array<Block, 4> blocks{Block{0, 0, upper, left}, Block{0, left, upper, right},
                                      Block{upper, 0, lower, left}, Block{upper, left, lower, right}};
    double score = 0;
    for (const Block& block : blocks) {
      if (block.size() > 0) {
        score += static_cast<double>(block.size()) / static_cast<double>(image.size()) *
                 block_similarity(image, block);
      }
    }
    return score;
  }

  static double block_similarity(const ImageStatistics& image, const Block& block) {
    const Moments moments = moments_of(image.pair(), block);
    const auto n = static_cast<double>(block.size());
    const double step = image.value_step();
    const double per_pair = 1 / (n * (n - 1 + kEpsilon));
    const double y = static_cast<double>(moments.g) / n;
    const double variance_y = centred(block.size(), moments.g, moments.g, moments.g) * per_pair;
    const double covariance = centred(block.size(), moments.ug, moments.u, moments.g) * step * per_pair;
    const double spread = centred(block.size(), moments.uu, moments.u, moments.u);
    double variance_x = spread * step * step * per_pair;
    double x = (static_cast<double>(moments.u) / n - image.lowest_level()) * step;
    if (spread == 0) {
      const double v = image.value(static_cast<uint8_t>(moments.u / block.size()));
      x = mean_of_constant(v, block, image.pair().width);
      variance_x = (v - x) * (v - x) * n / (n - 1 + kEpsilon);
    }
    const double numerator = 4 * x * y * covariance;
    const double denominator = (x * x + y * y) * (variance_x + variance_y);
    if (numerator != 0) {
      return numerator / (denominator + kEpsilon);
    }
    return denominator == 0 ? 1 : 0;
  }

  static Moments moments_of(const MapPair& pair, const Block& block) {
    Moments moments;
    for (int64_t row = block.top; row < block.top + block.height; ++row) {
      const int64_t begin = row * pair.width + block.left;
      for (int64_t pixel = begin; pixel < begin + block.width; ++pixel) {
        const int64_t u = pair.prediction[pixel];
        const int64_t g = pair.is_foreground(pixel) ? 1 : 0;
        moments.u += u;
        moments.uu += u * u;
        moments.ug += u * g;
        moments.g += g;
      }
    }
    return moments;
  }

  /// n * sum(ab) - sum(a) * sum(b), exact before the one rounding to double.
  static double centred(int64_t n, int64_t ab, int64_t a, int64_t b) {
    __extension__ typedef __int128 Wide;
    return static_cast<double>(static_cast<Wide>(n) * ab - static_cast<Wide>(a) * b);
  }

  /// The mean of a block that holds v everywhere, as NumPy 2 rounds it: a block that is one run of memory, or one row
  /// or column, is summed at once; any other in groups of whole rows that fit a buffer of 8192 numbers.
  static double mean_of_constant(double v, const Block& block, int64_t image_width) {
    const auto sum_of_rows = [&](int64_t rows) {
      return pairwise_sum(rows * block.width, [v](int64_t) { return v; });
    };
    const bool at_once = block.width == image_width || block.width == 1;
    const int64_t rows = at_once ? block.height : std::max<int64_t>(1, 8192 / block.width);
    const double group_sum = sum_of_rows(rows);
    double sum = 0;
    for (int64_t group = 0; group < block.height / rows; ++group) {
      sum += group_sum;
    }
    sum += sum_of_rows(block.height % rows);
    return sum / static_cast<double>(block.size());
  }
};

}  // namespace moecod::metric
