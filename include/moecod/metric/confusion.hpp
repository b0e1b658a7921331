#pragma once

#include <cstdint>

namespace moecod::metric {

/// Pixel counts of a binary prediction against a binary truth. What every thresholded metric is a function of.
struct Confusion {
  int64_t true_positive = 0;
  int64_t false_positive = 0;
  int64_t true_negative = 0;
  int64_t false_negative = 0;

  int64_t predicted_foreground() const { return true_positive + false_positive; }
  int64_t predicted_background() const { return true_negative + false_negative; }
  int64_t foreground() const { return true_positive + false_negative; }
  int64_t background() const { return true_negative + false_positive; }
  int64_t size() const { return foreground() + background(); }

  Confusion& operator+=(const Confusion& other) {
    true_positive += other.true_positive;
    false_positive += other.false_positive;
    true_negative += other.true_negative;
    false_negative += other.false_negative;
    return *this;
  }

  friend bool operator==(const Confusion&, const Confusion&) = default;
};

/// numerator / denominator, or 0 if the denominator is 0: the convention of every ratio of counts in this folder.
inline double ratio_or_zero(double numerator, double denominator) {
  return denominator == 0 ? 0 : numerator / denominator;
}

}  // namespace moecod::metric
