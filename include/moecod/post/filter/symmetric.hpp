#pragma once
#include <cmath>
#include <utility>

#include "moecod/post/filter/features.hpp"

namespace moecod::post::filter {

/// A filter normalised on both sides, so that it stays symmetric: v -> n * K (n * v) with n = 1 / sqrt(K 1 + 1e-20).
///
/// Errors: as the filter's.
/// Source: Kraehenbuehl and Koltun 2013, Parameter learning and convergent inference for dense random fields.
template <gaussian_filter Filter>
class Symmetric {
 public:
  explicit Symmetric(Filter filter) : filter_(std::move(filter)) {
    factors_ = filter_.apply(std::vector<double>(filter_.size(), 1.0));
    for (double& n : factors_) n = 1.0 / std::sqrt(n + 1e-20);
  }

  std::size_t size() const { return filter_.size(); }

  std::vector<double> apply(std::vector<double> values) const {
    post::detail::check_values("Symmetric", size(), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] *= factors_[i];
    values = filter_.apply(values);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] *= factors_[i];
    return values;
  }

 private:
  Filter filter_;
  std::vector<double> factors_;
};

}  // namespace moecod::post::filter
