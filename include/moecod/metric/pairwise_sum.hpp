#pragma once

#include <array>
#include <cstdint>

namespace moecod::metric {

/// Sum of value(0) ... value(count - 1) in float64, rounded as NumPy rounds the sum of a contiguous array.
///
/// NumPy halves runs of more than 128 numbers (at a multiple of 8) and adds shorter ones into eight partial sums.
/// Two results hang on the last bit of a mean: pixels that lie exactly on the adaptive threshold, and blocks of
/// constant prediction in the S-measure. So the order of additions is part of the metrics' definition.
template <class Value>
double pairwise_sum(int64_t count, const Value& value, int64_t first = 0) {
  if (count > 128) {
    const int64_t half = count / 2 / 8 * 8;
    return pairwise_sum(half, value, first) + pairwise_sum(count - half, value, first + half);
  }
  double sum = 0;
  int64_t done = 0;
  if (count >= 8) {
    std::array<double, 8> part{};
    for (; done + 8 <= count; done += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) {
        part[lane] += value(first + done + lane);
      }
    }
    sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }
  for (; done < count; ++done) {
    sum += value(first + done);
  }
  return sum;
}

/// The same sum to the bit, in less time, if value(i) is 0 for every i outside [begin, end): runs of zeros are skipped.
template <class Value>
double pairwise_sum_within(int64_t begin, int64_t end, int64_t count, const Value& value, int64_t first = 0) {
  if (first >= end || first + count <= begin) {
    return 0;
  }
  if (count > 128) {
    const int64_t half = count / 2 / 8 * 8;
    return pairwise_sum_within(begin, end, half, value, first) +
           pairwise_sum_within(begin, end, count - half, value, first + half);
  }
  return pairwise_sum(count, value, first);
}

}  // namespace moecod::metric
