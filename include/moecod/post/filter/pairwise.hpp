#pragma once
#include <cmath>
#include <utility>

#include "moecod/post/filter/features.hpp"

namespace moecod::post::filter {

/// The Gaussian filter of points, pair by pair: exact, and O(N^2).
///
///     (K v)_i = v_i + sum over j != i of exp(-|f_i - f_j|^2 / 2) v_j
///
/// Pairs further apart than `reach` = 10 standard deviations are left out: each is below 2e-22. That is most pairs of a
/// picture whose colours differ, and saves their exponentials. For small pictures and to measure the lattice against.
///
/// Errors: std::invalid_argument for another number of values than points.
template <std::size_t D>
class Pairwise {
 public:
  static constexpr double reach = 10;

  explicit Pairwise(std::vector<Feature<D>> points) : points_(std::move(points)) {}

  std::size_t size() const { return points_.size(); }

  std::vector<double> apply(const std::vector<double>& values) const {
    post::detail::check_values("Pairwise", size(), values.size());
    std::vector<double> out = values;
    for (std::size_t i = 0; i < size(); ++i) {
      double mine = 0;
      for (std::size_t j = i + 1; j < size(); ++j) {
        // The colours, which come last, differ most.
        double squared = 0;
        for (std::size_t d = D; d-- > 0;) squared += (points_[i][d] - points_[j][d]) * (points_[i][d] - points_[j][d]);
        if (squared > reach * reach) continue;
        const double k = std::exp(-0.5 * squared);
        mine += k * values[j];
        out[j] += k * values[i];
      }
      out[i] += mine;
    }
    return out;
  }

 private:
  std::vector<Feature<D>> points_;
};

}  // namespace moecod::post::filter
