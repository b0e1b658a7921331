#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/log.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "moecod/moe/routing.hpp"

namespace moecod {

/// (largest load - mean load) / mean load; 0 is perfect balance, E - 1 is all rows to one expert.
inline double max_violation(const std::vector<int64_t>& counts) {
  const double total = double(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  if (total == 0) return 0;
  const double mean = total / double(counts.size());
  return (double(*std::max_element(counts.begin(), counts.end())) - mean) / mean;
}

/// The mean MaxVio of routing that is perfectly uniform and random: what chance alone gives for N rows to K of E.
/// Simulated with a fixed seed; `trials` of 2,000 give about two digits. Of more than 2,000 rows that many are simulated
/// and scaled by the root of their share, as deviations of sums are.
inline double max_violation_noise_floor(int64_t rows, int64_t experts, int64_t per_row, int64_t trials = 2000) {
  TORCH_CHECK(rows >= 1 && experts >= per_row && per_row >= 1, "max_violation_noise_floor: expected rows >= 1 and ",
              "experts >= per_row >= 1, got ", rows, ", ", experts, ", ", per_row);
  constexpr int64_t most = 2000;
  if (rows > most)
    return max_violation_noise_floor(most, experts, per_row, trials) * std::sqrt(double(most) / double(rows));
  std::mt19937_64 random(20240815);
  std::vector<int64_t> deck(experts);
  std::iota(deck.begin(), deck.end(), 0);
  double total = 0;
  for (int64_t t = 0; t < trials; ++t) {
    std::vector<int64_t> counts(experts, 0);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < per_row; ++k) {
        std::swap(deck[k], deck[k + int64_t(random() % uint64_t(experts - k))]);
        ++counts[deck[k]];
      }
    }
    total += max_violation(counts);
  }
  return total / double(trials);
}

/// Mutual information between two labellings over the square root of the product of their entropies, in [0, 1].
/// Zero when either is constant. Errors: c10::Error if lengths differ or a label is negative.
inline double normalised_mutual_information(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  TORCH_CHECK(a.size() == b.size(), "normalised_mutual_information: ", a.size(), " and ", b.size(), " labels");
  if (a.empty()) return 0;
  TORCH_CHECK(*std::min_element(a.begin(), a.end()) >= 0 && *std::min_element(b.begin(), b.end()) >= 0,
              "normalised_mutual_information: labels must not be negative");
  const int64_t rows = *std::max_element(a.begin(), a.end()) + 1, columns = *std::max_element(b.begin(), b.end()) + 1;
  std::vector<double> joint(rows * columns), left(rows), right(columns);
  const double each = 1.0 / double(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    joint[a[i] * columns + b[i]] += each;
    left[a[i]] += each;
    right[b[i]] += each;
  }
  auto entropy = [](const std::vector<double>& p) {
    double h = 0;
    for (double x : p) h -= x > 0 ? x * std::log(x) : 0;
    return h;
  };
  const double ha = entropy(left), hb = entropy(right);
  return ha > 0 && hb > 0 ? std::max(0.0, (ha + hb - entropy(joint)) / std::sqrt(ha * hb)) : 0;
}

/// The value below which a share `quantile` of shuffled labellings lies: what chance alone reaches.
inline double shuffled_mutual_information(const std::vector<int64_t>& a, std::vector<int64_t> b, double quantile,
                                          int64_t shuffles = 1000, uint64_t seed = 0) {
  std::mt19937_64 random(seed);
  std::vector<double> values;
  for (int64_t s = 0; s < shuffles; ++s) {
    for (std::size_t i = b.size(); i > 1; --i) std::swap(b[i - 1], b[random() % i]);
    values.push_back(normalised_mutual_information(a, b));
  }
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[std::min(values.size() - 1, std::size_t(quantile * double(values.size())))];
}

/// Watches the decisions of one mixture over many batches.
///
/// observe() keeps detached references on the device and does not synchronise; report() reads them back.
class Monitor {
 public:
  struct Report {
    int64_t rows = 0;
    std::vector<int64_t> counts;     ///< [E] assignments
    std::vector<double> usage;       ///< [E] share of the assignments
    double max_violation = 0;        ///< over all rows observed
    double noise_floor = 0;          ///< its mean under uniform random routing of as many rows
    double batch_max_violation = 0;  ///< mean over the batches observed
    double batch_noise_floor = 0;    ///< its mean under uniform random routing of the first batch's rows
    double entropy = 0;              ///< nats, mean over rows of the normalised scores; NaN for given routings
    std::vector<int64_t> dead;       ///< experts without a single row
    std::vector<int64_t> top1;       ///< [rows] first choice of each row, -1 for one that no expert took
    double label_information = 0;    ///< normalised mutual information of first choice and label; NaN without labels
    double label_information_chance = 0;  ///< its 99th percentile under 1,000 shuffles of the labels
  };

  /// labels: one per row, any small non-negative integers (for example the regime of the picture), or none.
  void observe(const Routing& routing, const std::vector<int64_t>& labels = {}) {
    TORCH_CHECK(labels.empty() || int64_t(labels.size()) == routing.rows(), "Monitor: ", labels.size(),
                " labels for ", routing.rows(), " rows");
    if (counts_.empty()) batch_rows_ = routing.rows();
    counts_.push_back(routing.counts.detach());
    first_.push_back(routing.first_choice());
    if (routing.scores.defined()) {
      const at::Tensor p = routing.scores.detach() / routing.scores.detach().sum(1, true).clamp_min(1e-20);
      entropy_.push_back(-(p * at::log(p.clamp_min(1e-20))).sum(1));
    }
    labels_.insert(labels_.end(), labels.begin(), labels.end());
  }

  void reset() { *this = Monitor(); }

  /// The same of what several processes have observed, where all_rows(t [n, ...]) returns the t of all of them one
  /// behind the other. All processes must have observed something, with labels or all without.
  template <class AllRows>
  Monitor gathered(AllRows&& all_rows) const {
    Monitor out;
    const at::Tensor counts = all_rows(at::stack(counts_));
    for (int64_t batch = 0; batch < counts.size(0); ++batch) out.counts_.push_back(counts[batch]);
    out.first_ = {all_rows(at::cat(first_))};
    if (!entropy_.empty()) out.entropy_ = {all_rows(at::cat(entropy_))};
    if (!labels_.empty()) out.labels_ = to_vector(all_rows(at::tensor(labels_)));
    out.batch_rows_ = batch_rows_;
    return out;
  }

  /// Synchronises. Errors: c10::Error when nothing was observed.
  Report report() const {
    TORCH_CHECK(!counts_.empty(), "Monitor::report: nothing was observed");
    Report out;
    for (std::size_t batch = 0; batch < counts_.size(); ++batch) {
      const std::vector<int64_t> counts = to_vector(counts_[batch]);
      if (out.counts.empty()) out.counts.assign(counts.size(), 0);
      for (std::size_t e = 0; e < counts.size(); ++e) out.counts[e] += counts[e];
      out.batch_max_violation += moecod::max_violation(counts) / double(counts_.size());
    }
    out.top1 = to_vector(at::cat(first_));
    out.rows = int64_t(out.top1.size());
    const double total = double(std::accumulate(out.counts.begin(), out.counts.end(), int64_t{0}));
    for (std::size_t e = 0; e < out.counts.size(); ++e) {
      out.usage.push_back(total > 0 ? double(out.counts[e]) / total : 0);
      if (out.counts[e] == 0) out.dead.push_back(int64_t(e));
    }
    const int64_t experts = int64_t(out.counts.size());
    const int64_t per_row = std::clamp<int64_t>(std::llround(total / double(out.rows)), 1, experts);
    out.max_violation = moecod::max_violation(out.counts);
    out.noise_floor = max_violation_noise_floor(out.rows, experts, per_row);
    out.batch_noise_floor = max_violation_noise_floor(batch_rows_, experts, per_row);
    out.entropy = entropy_.empty() ? NAN : at::cat(entropy_).to(at::kDouble).mean().item<double>();
    out.label_information = out.label_information_chance = NAN;
    if (!labels_.empty() && labels_.size() == out.top1.size()) {
      std::vector<int64_t> labels, chosen;
      for (std::size_t i = 0; i < labels_.size(); ++i) {
        if (out.top1[i] < 0) continue;
        labels.push_back(labels_[i]);
        chosen.push_back(out.top1[i]);
      }
      out.label_information = normalised_mutual_information(labels, chosen);
      out.label_information_chance = shuffled_mutual_information(labels, chosen, 0.99);
    }
    return out;
  }

 private:
  static std::vector<int64_t> to_vector(const at::Tensor& t) {
    const at::Tensor host = t.to(at::kCPU, at::kLong).contiguous();
    return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
  }

  std::vector<at::Tensor> counts_, first_, entropy_;
  std::vector<int64_t> labels_;
  int64_t batch_rows_ = 0;  // of the first batch
};

}  // namespace moecod
