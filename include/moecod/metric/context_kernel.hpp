#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <moecod/metric/image_statistics.hpp>

namespace moecod::metric {

/// The neighbourhood that the context measure gives to every pixel: a Gaussian with the shape of the foreground.
///
/// With S the sample covariance of the foreground's coordinates (row, column), an offset z has the weight
///     exp(-z' (a^2 S / tr S)^-1 z / 2),    a = 6,
/// over |z_i| <= round(3 a sqrt(S_ii / tr S)) (half to even), divided by the sum. A variance of 0 counts as eps. With
/// less than two foreground pixels the matrix is diag(1/4) and the offsets reach 1.
///
/// If all foreground pixels lie on one oblique line, S has no inverse, and the reference fails or returns what rounding
/// left. Here the kernel is the limit: offsets on the line have the weight exp(-|z|^2 / (2 a^2)), others none.
/// Source: Wang et al. 2025, Context-measure, arXiv 2512.07076; PySODMetrics, ContextMeasure.
class ContextKernel {
 public:
  explicit ContextKernel(const MapPair& pair) {
    __extension__ typedef __int128 Wide;
    Wide count = 0;
    std::array<Wide, 5> sums{};  // of r, c, rr, rc, cc
    for (int64_t row = 0; row < pair.height; ++row) {
      for (int64_t column = 0; column < pair.width; ++column) {
        if (pair.is_foreground(row * pair.width + column)) {
          ++count;
          sums[0] += row;
          sums[1] += column;
          sums[2] += row * row;
          sums[3] += row * column;
          sums[4] += column * column;
        }
      }
    }
    if (count <= 1) {
      rows_ = columns_ = 1;
      set_weights([](int64_t row, int64_t column) { return 4.0 * static_cast<double>(row * row + column * column); });
      return;
    }
    // Exact: the covariance is these over count (count - 1).
    const Wide rr = count * sums[2] - sums[0] * sums[0];
    const Wide rc = count * sums[3] - sums[0] * sums[1];
    const Wide cc = count * sums[4] - sums[1] * sums[1];
    const double scale = static_cast<double>(count) * static_cast<double>(count - 1);
    const double row_variance = rr == 0 ? kEpsilon : static_cast<double>(rr) / scale;
    const double column_variance = cc == 0 ? kEpsilon : static_cast<double>(cc) / scale;
    const double total = std::sqrt(row_variance + column_variance);
    rows_ = static_cast<int64_t>(std::nearbyint(3 * (kSpread * std::sqrt(row_variance) / total)));
    columns_ = static_cast<int64_t>(std::nearbyint(3 * (kSpread * std::sqrt(column_variance) / total)));

    const bool on_an_axis = rr == 0 || cc == 0;
    // A line of this many pixels is longer than any image; and below, the products fit.
    const bool exact = rr < (Wide{1} << 62) && cc < (Wide{1} << 62);
    if (!on_an_axis && exact && rr * cc == rc * rc) {
      set_weights([&](int64_t row, int64_t column) {
        return row * rc == column * rr ? static_cast<double>(row * row + column * column) / (kSpread * kSpread)
                                       : HUGE_VAL;
      });
      return;
    }
    const double covariance = static_cast<double>(rc) / scale;
    const double determinant =
        on_an_axis ? row_variance * column_variance
                   : static_cast<double>(exact ? static_cast<long double>(rr * cc - rc * rc)
                                               : static_cast<long double>(rr) * static_cast<long double>(cc) -
                                                     static_cast<long double>(rc) * static_cast<long double>(rc)) /
                         (scale * scale);
    const double per_form = total * total / (kSpread * kSpread) / determinant;
    set_weights([&](int64_t row, int64_t column) {
      const auto r = static_cast<double>(row);
      const auto c = static_cast<double>(column);
      return (column_variance * r * r - 2 * covariance * r * c + row_variance * c * c) * per_form;
    });
  }

  /// Offsets reach from -rows() to rows(), and from -columns() to columns().
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t size() const { return (2 * rows_ + 1) * (2 * columns_ + 1); }

  /// [2 rows + 1, 2 columns + 1]; the sum is 1.
  const std::vector<double>& weights() const { return weights_; }

 private:
  static constexpr double kSpread = 6;

  template <class Form>
  void set_weights(const Form& form) {
    double sum = 0;
    for (int64_t row = -rows_; row <= rows_; ++row) {
      for (int64_t column = -columns_; column <= columns_; ++column) {
        weights_.push_back(std::exp(-0.5 * form(row, column)));
        sum += weights_.back();
      }
    }
    for (double& weight : weights_) {
      weight /= sum;
    }
  }

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<double> weights_;
};

}  // namespace moecod::metric
