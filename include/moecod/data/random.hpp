#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace moecod::data {

/// The finaliser of SplitMix64: a bijection of 64-bit numbers whose output bits all depend on all input bits.
constexpr uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// A counter-based stream of random numbers, SplitMix64 keyed by any list of numbers: the n-th value is
///     scramble(key + n * gamma),   key = the numbers folded by scramble.
/// What a sample looks like is a function of its key (seed, epoch, index) alone, so neither threads nor the order of
/// work show in it, and the standard distributions, which differ between libraries, are not used.
/// Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators.
class Random {
 public:
  explicit Random(std::initializer_list<uint64_t> key) {
    for (const uint64_t part : key) key_ = scramble(key_ * 0x2545F4914F6CDD1DULL + part + kGamma);
  }

  uint64_t bits() { return scramble(key_ + kGamma * ++counter_); }
  /// In [0, 1), a multiple of 2^-24.
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24F; }
  float uniform(float low, float high) { return low + (high - low) * uniform(); }
  /// 0 .. n-1, n > 0; the modulo bias is below n / 2^64.
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool chance(float probability) { return uniform() < probability; }
  /// Mean 0, variance 1, within +-3.5: a sum of four uniform numbers, which needs no library function.
  float bell() { return (uniform() + uniform() + uniform() + uniform() - 2.0F) * 1.7320508F; }
  float sign() { return chance(0.5F) ? 1.0F : -1.0F; }

 private:
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15ULL;
  uint64_t key_ = 0;
  uint64_t counter_ = 0;
};

/// A permutation of 0 .. n-1 (Fisher and Yates), each equally likely.
inline std::vector<int64_t> permutation(int64_t n, Random random) {
  std::vector<int64_t> order(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.below(i + 1))]);
  }
  return order;
}

}  // namespace moecod::data
