#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace moecod::metric {

/// Running mean whose bits do not depend on the order in which values are added or partial means are merged.
///
/// Values are summed as 128-bit integers in units of 2^-56, and integer addition is associative and commutative.
/// So any number of threads, any split of a data set, and any order of merging give the same double. A value is
/// rounded to the unit once, an error of at most 2^-57; sums up to 2^71 fit.
///
/// Errors: std::invalid_argument for a value that is not finite or exceeds 2^53 in magnitude;
/// std::logic_error for the mean of nothing.
class ExactMean {
 public:
  void add(double value) {
    if (!(std::abs(value) <= 0x1p53)) {
      throw std::invalid_argument("ExactMean::add: expected a finite value within +-2^53, got " +
                                  std::to_string(value));
    }
    sum_ += static_cast<Wide>(std::nearbyint(value * kUnitsPerOne));
    ++count_;
  }

  void merge(const ExactMean& other) {
    sum_ += other.sum_;
    count_ += other.count_;
  }

  double value() const {
    if (count_ == 0) {
      throw std::logic_error("ExactMean::value: no value was added");
    }
    return static_cast<double>(sum_) / kUnitsPerOne / static_cast<double>(count_);
  }

  int64_t count() const { return count_; }

 private:
  __extension__ typedef __int128 Wide;
  static constexpr double kUnitsPerOne = 0x1p56;

  Wide sum_ = 0;
  int64_t count_ = 0;
};

}  // namespace moecod::metric
