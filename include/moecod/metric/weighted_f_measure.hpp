#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/nearest_foreground.hpp>

namespace moecod::metric {

/// Weighted F-measure (beta = 1).
///
/// With e = |v - g|, every background pixel takes over the error of its nearest foreground pixel, the result is
/// smoothed by a normalised 7x7 Gaussian of sigma 5 (zero padding) to E_A, and
///     e_w = min(E_A, e)                              on the foreground,
///     e_w = e (2 - exp(ln(1/2) / 5 d))               on the background, d the distance to the foreground,
///     TP = sum g - sum_fg e_w,  FP = sum_bg e_w,  R = 1 - mean_fg e_w,  P = TP / (TP + FP + eps),
///     Q = 2 R P / (R + P + eps).
/// Truth empty: 0. Range [0, 1], 1 is best. Time and memory O(height * width).
/// Source: Margolin et al., How to Evaluate Foreground Maps?, CVPR 2014; PySODMetrics, WeightedFmeasure.
struct WeightedFMeasure {
  static constexpr const char* name = "wfmeasure";

  static double of(const ImageStatistics& image) {
    if (image.foreground_size() == 0) {
      return 0;
    }
    const MapPair& pair = image.pair();
    std::vector<double> error(static_cast<size_t>(image.size()));
    for (int64_t pixel = 0; pixel < image.size(); ++pixel) {
      error[pixel] = 1 - image.value(pair.prediction[pixel]);
    }
    double false_positive = 0;
    visit_nearest_foreground(pair, [&](int64_t row, int64_t column, int64_t nearest_row, int64_t nearest_column) {
      const int64_t pixel = row * pair.width + column;
      error[pixel] = error[nearest_row * pair.width + nearest_column];
      const double own_error = image.value(pair.prediction[pixel]);
      if (own_error > 0) {
        const int64_t rows = row - nearest_row;
        const int64_t columns = column - nearest_column;
        const double distance = std::sqrt(static_cast<double>(rows * rows + columns * columns));
        false_positive += own_error * (2 - std::exp(std::log(0.5) / 5 * distance));
      }
    });

    const double foreground_error = smoothed_foreground_error(pair, error);
    const auto foreground = static_cast<double>(image.foreground_size());
    const double true_positive = foreground - foreground_error;
    const double recall = 1 - foreground_error / foreground;
    const double precision = true_positive / (true_positive + false_positive + kEpsilon);
    return 2 * recall * precision / (recall + precision + kEpsilon);
  }

 private:
  static constexpr int64_t kRadius = 3;
  static constexpr int64_t kTaps = 2 * kRadius + 1;

  /// The 7x7 Gaussian is the outer product of this vector with itself.
  static std::array<double, kTaps> gaussian() {
    std::array<double, kTaps> taps{};
    double sum = 0;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      const auto offset = static_cast<double>(tap - kRadius);
      taps[tap] = std::exp(-offset * offset / (2 * 5.0 * 5.0));
      sum += taps[tap];
    }
    for (double& tap : taps) {
      tap /= sum;
    }
    return taps;
  }

  /// sum over the foreground of min(smoothed error, error).
  static double smoothed_foreground_error(const MapPair& pair, const std::vector<double>& error) {
    const std::array<double, kTaps> taps = gaussian();
    const int64_t height = pair.height;
    const int64_t width = pair.width;
    std::vector<double> padded(static_cast<size_t>(width + 2 * kRadius), 0);
    // Rows smoothed along the columns; row r lives in slot r modulo the number of taps.
    std::vector<double> smoothed(static_cast<size_t>(kTaps * width), 0);
    std::vector<double> total(static_cast<size_t>(width));
    const auto slot = [&](int64_t row) { return smoothed.data() + (row + kTaps) % kTaps * width; };

    double sum = 0;
    for (int64_t entering = 0; entering < height + kRadius; ++entering) {
      double* const out = slot(entering);
      std::fill_n(out, width, 0.0);
      if (entering < height) {
        std::copy_n(error.data() + entering * width, width, padded.data() + kRadius);
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const double* const in = padded.data() + tap;
          for (int64_t column = 0; column < width; ++column) {
            out[column] += taps[tap] * in[column];
          }
        }
      }
      const int64_t row = entering - kRadius;
      const uint8_t* const truth = pair.truth + row * width;
      if (row < 0 || std::none_of(truth, truth + width, [](uint8_t t) { return t > 128; })) {
        continue;
      }
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        const double* const in = slot(row + tap - kRadius);
        for (int64_t column = 0; column < width; ++column) {
          total[column] += taps[tap] * in[column];
        }
      }
      for (int64_t column = 0; column < width; ++column) {
        if (truth[column] > 128) {
          sum += std::min(total[column], error[row * width + column]);
        }
      }
    }
    return sum;
  }
};

}  // namespace moecod::metric
