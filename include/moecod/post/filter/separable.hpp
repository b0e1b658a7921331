#pragma once
#include <algorithm>
#include <cmath>

#include "moecod/post/filter/features.hpp"

namespace moecod::post::filter {

/// The Gaussian filter of a picture's positions, by rows and then by columns.
///
///     (K v)(y, x) = sum over (y', x') of exp(-((y - y')^2 + (x - x')^2) / (2 sxy^2)) v(y', x')
///
/// Nothing outside the picture counts. Taps end at 9 standard deviations, where they are below 3e-18, so the result is
/// exact to rounding. O(N * sxy).
///
/// Errors: std::invalid_argument for sizes or an sxy that are not positive, or another number of values than pixels.
class Separable {
 public:
  static constexpr double reach = 9;

  Separable(int64_t height, int64_t width, double sxy) : height_(height), width_(width) {
    if (height <= 0 || width <= 0 || !(sxy > 0))
      throw std::invalid_argument("Separable: height, width and sxy must be positive, got " + std::to_string(height) +
                                  ", " + std::to_string(width) + " and " + std::to_string(sxy));
    const auto longest = double(std::max(height, width) - 1);
    for (int64_t t = 0; double(t) <= std::min(longest, reach * sxy); ++t)
      taps_.push_back(std::exp(-0.5 * double(t * t) / (sxy * sxy)));
  }

  std::size_t size() const { return std::size_t(height_ * width_); }

  std::vector<double> apply(const std::vector<double>& values) const {
    post::detail::check_values("Separable", size(), values.size());
    std::vector<double> rows(size(), 0.0), out(size(), 0.0);
    const auto reach_of = [&](int64_t length) { return std::min(int64_t(taps_.size()), length); };
    for (int64_t y = 0; y < height_; ++y) {
      const double* from = values.data() + y * width_;
      double* to = rows.data() + y * width_;
      for (int64_t x = 0; x < width_; ++x) to[x] = taps_[0] * from[x];
      for (int64_t t = 1; t < reach_of(width_); ++t) {
        const double tap = taps_[std::size_t(t)];
        for (int64_t x = 0; x + t < width_; ++x) to[x] += tap * from[x + t];
        for (int64_t x = t; x < width_; ++x) to[x] += tap * from[x - t];
      }
    }
    for (int64_t y = 0; y < height_; ++y) {
      double* to = out.data() + y * width_;
      const auto add = [&](int64_t from_row, double tap) {
        const double* from = rows.data() + from_row * width_;
        for (int64_t x = 0; x < width_; ++x) to[x] += tap * from[x];
      };
      add(y, taps_[0]);
      for (int64_t t = 1; t < reach_of(height_); ++t) {
        if (y + t < height_) add(y + t, taps_[std::size_t(t)]);
        if (y - t >= 0) add(y - t, taps_[std::size_t(t)]);
      }
    }
    return out;
  }

 private:
  int64_t height_, width_;
  std::vector<double> taps_;
};

}  // namespace moecod::post::filter
