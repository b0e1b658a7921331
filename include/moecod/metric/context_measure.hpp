#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

#include <moecod/metric/context_kernel.hpp>
#include <moecod/metric/image_statistics.hpp>

namespace moecod::metric {

/// Context measure: how well prediction and truth lie in each other's neighbourhood.
///
/// With K the neighbourhood (see context_kernel.hpp), * correlation with reflected borders (the border pixel itself not
/// repeated), v the prediction, g the truth, and c the weight that camouflage adds (0 here),
///     P = sum v (K * g) / (sum v + eps)                             what is predicted lies near the truth,
///     R = sum (g + c) u / (sum g + sum c + eps),                    what is true lies near the prediction,
///         u = e / (e - 1) g (1 - exp(-(K * v))),
///     cm = (1 + b) P R / (b P + R + eps),  b = 1.
/// 0 if truth or prediction is empty. Range [0, 1], 1 is best, but not reached where an object is thin: K is wider.
///
/// K * g is a float32 in the reference, of a float32 kernel: added in float32, row by row, if the kernel has less than
/// 130 weights, else in float64. Kept; but where a sum lies halfway between two float32, the reference's Fourier
/// transform may round it the other way. Of an object of two or three pixels that moves the figure by some 1e-9.
/// Time O(height * width * kernel), with kernels of up to 27 x 27 weights.
/// Source: Wang et al. 2025, Context-measure, arXiv 2512.07076; PySODMetrics, ContextMeasure.
struct ContextMeasure {
  static constexpr const char* name = "cm";

  static double of(const ImageStatistics& image) { return of(image, 1.0, {}); }

  /// With b, and c at every pixel: [height * width], or empty for 0. c is read on the foreground, and 0 elsewhere.
  static double of(const ImageStatistics& image, double balance, const std::vector<double>& camouflage) {
    const MapPair& pair = image.pair();
    if (image.foreground_size() == 0) {
      return 0;
    }
    const ContextKernel kernel(pair);
    const double relevance = sum_of_relevance(image, kernel);
    const double precision = relevance / (image.mean() * static_cast<double>(image.size()) + kEpsilon);

    double completeness = 0;
    double weights = 0;
    const auto value = [&](int64_t pixel) { return image.value(pair.prediction[pixel]); };
    const Correlation<double> near(pair, kernel, value);
    const auto [top, left, bottom, right] = extent(pair);
    for (int64_t row = top; row < bottom; ++row) {
      const std::vector<double>& sums = near.row(row, left, right);
      for (int64_t column = left; column < right; ++column) {
        const int64_t pixel = row * pair.width + column;
        if (pair.is_foreground(pixel)) {
          const double weight = 1 + (camouflage.empty() ? 0 : camouflage[pixel]);
          completeness += kFactor * (1 - std::exp(-sums[column - left])) * weight;
          weights += weight;
        }
      }
    }
    const double recall = completeness / (weights + kEpsilon);
    return (1 + balance) * precision * recall / (balance * precision + recall + kEpsilon);
  }

 private:
  static constexpr double kFactor = std::numbers::e / (std::numbers::e - 1);

  struct Extent {
    int64_t top;
    int64_t left;
    int64_t bottom;
    int64_t right;
  };

  /// The rows and columns that hold the foreground.
  static Extent extent(const MapPair& pair) {
    Extent extent{pair.height, pair.width, 0, 0};
    for (int64_t row = 0; row < pair.height; ++row) {
      for (int64_t column = 0; column < pair.width; ++column) {
        if (pair.is_foreground(row * pair.width + column)) {
          extent.top = std::min(extent.top, row);
          extent.left = std::min(extent.left, column);
          extent.bottom = row + 1;
          extent.right = std::max(extent.right, column + 1);
        }
      }
    }
    return extent;
  }

  /// A map correlated with the kernel, a row at a time. Sum is the type of the weights, the map and the sums.
  template <class Sum>
  class Correlation {
   public:
    template <class Value>
    Correlation(const MapPair& pair, const ContextKernel& kernel, const Value& value)
        : rows_(kernel.rows()),
          columns_(kernel.columns()),
          stride_(pair.width + 2 * columns_),
          weights_(kernel.weights().begin(), kernel.weights().end()),
          padded_(static_cast<std::size_t>((pair.height + 2 * rows_) * stride_)),
          is_empty_(static_cast<std::size_t>(pair.height + 2 * rows_), true) {
      for (int64_t row = 0; row < pair.height + 2 * rows_; ++row) {
        const int64_t source = reflected(row - rows_, pair.height);
        for (int64_t column = 0; column < stride_; ++column) {
          const auto v = static_cast<Sum>(value(source * pair.width + reflected(column - columns_, pair.width)));
          padded_[row * stride_ + column] = v;
          is_empty_[row] = is_empty_[row] && v == 0;
        }
      }
    }

    /// The sums of columns left ... right - 1; valid until the next call.
    const std::vector<Sum>& row(int64_t row, int64_t left, int64_t right) const {
      sums_.assign(static_cast<std::size_t>(right - left), 0);
      for (int64_t i = 0; i < 2 * rows_ + 1; ++i) {
        if (is_empty_[row + i]) {
          continue;
        }
        for (int64_t j = 0; j < 2 * columns_ + 1; ++j) {
          const Sum weight = weights_[i * (2 * columns_ + 1) + j];
          const Sum* const values = padded_.data() + (row + i) * stride_ + left + j;
          for (int64_t column = 0; column < right - left; ++column) {
            sums_[column] += weight * values[column];
          }
        }
      }
      return sums_;
    }

    /// Rounds the weights to float32.
    void round_weights() {
      for (Sum& weight : weights_) {
        weight = static_cast<float>(weight);
      }
    }

   private:
    /// Position in [0, size) of a position beyond the border.
    static int64_t reflected(int64_t position, int64_t size) {
      if (size == 1) {
        return 0;
      }
      const int64_t period = 2 * (size - 1);
      const int64_t in_period = (position % period + period) % period;
      return std::min(in_period, period - in_period);
    }

    int64_t rows_;
    int64_t columns_;
    int64_t stride_;
    std::vector<Sum> weights_;
    std::vector<Sum> padded_;
    std::vector<bool> is_empty_;
    mutable std::vector<Sum> sums_;
  };

  /// sum v (K * g)
  static double sum_of_relevance(const ImageStatistics& image, const ContextKernel& kernel) {
    constexpr int64_t kLargestDirect = 129;
    const MapPair& pair = image.pair();
    const auto truth = [&](int64_t pixel) { return pair.is_foreground(pixel) ? 1.0F : 0.0F; };
    // K * g is 0 farther than the kernel from the foreground.
    const auto [top, left, bottom, right] = extent(pair);
    const int64_t first = std::max<int64_t>(0, left - kernel.columns());
    const int64_t last = std::min(pair.width, right + kernel.columns());
    const auto sum_over = [&](const auto& near) {
      double sum = 0;
      for (int64_t row = std::max<int64_t>(0, top - kernel.rows());
           row < std::min(pair.height, bottom + kernel.rows()); ++row) {
        const auto& sums = near.row(row, first, last);
        for (int64_t column = first; column < last; ++column) {
          sum += static_cast<double>(static_cast<float>(sums[column - first])) *
                 image.value(pair.prediction[row * pair.width + column]);
        }
      }
      return sum;
    };
    if (kernel.size() <= kLargestDirect) {
      return sum_over(Correlation<float>(pair, kernel, truth));
    }
    Correlation<double> near(pair, kernel, truth);
    near.round_weights();
    return sum_over(near);
  }
};

}  // namespace moecod::metric
