#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "moecod/post/filter/features.hpp"

namespace moecod::post {

/// A term of a random field: pixels that the filter holds together pay `weight` for different labels.
template <gaussian_filter Filter>
struct Term {
  double weight;
  Filter filter;
};
template <gaussian_filter Filter>
Term(double, Filter) -> Term<Filter>;

/// Mean-field inference of a fully connected random field of two labels with Potts compatibility.
///
///     Q_i(l) ~ exp(-U_i(l) - sum_m w_m (K_m Q(l'))_i),  l' the other label
///
/// is one number a pixel, the log-odds z = ln Q(1) - ln Q(0), and needs one filtering a term and iteration:
///
///     z <- u + sum_m w_m K_m (2 q - 1),   q = 1 / (1 + exp(-z)),   u = U(0) - U(1),   starting at z = u.
///
/// K_m includes the pixel itself, as the published program does. Takes u [N], gives q [N].
///
/// Errors: std::invalid_argument for a negative number of iterations or a filter of another size.
/// Source: Kraehenbuehl and Koltun 2011, Efficient inference in fully connected CRFs with Gaussian edge potentials,
/// arXiv 1210.5644.
template <class... Filters>
std::vector<double> mean_field(const std::vector<double>& unary, int64_t iterations,
                               const Term<Filters>&... terms) {
  if (iterations < 0)
    throw std::invalid_argument("mean_field: iterations must not be negative, got " + std::to_string(iterations));
  const auto update = [](const std::vector<double>& log_odds) {
    std::vector<double> q(log_odds.size());
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = 1.0 / (1.0 + std::exp(-log_odds[i]));
    return q;
  };
  std::vector<double> q = update(unary);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    for (double& x : q) x = 2 * x - 1;
    std::vector<double> log_odds = unary;
    [[maybe_unused]] const auto add = [&](const auto& term) {
      const std::vector<double> message = term.filter.apply(q);
      for (std::size_t i = 0; i < log_odds.size(); ++i) log_odds[i] += term.weight * message[i];
    };
    (add(terms), ...);
    q = update(log_odds);
  }
  return q;
}

}  // namespace moecod::post
