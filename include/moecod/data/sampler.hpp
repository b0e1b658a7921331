#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "moecod/data/random.hpp"

namespace moecod::data {

/// Which samples one rank sees in an epoch, in which order.
///
/// Training: a permutation keyed on (seed, epoch), cut after the last multiple of world * batch, and dealt out so
/// that batch b of all ranks together is the b-th run of world * batch numbers: every rank has equally many full
/// batches, and a sample is seen at most once an epoch. Evaluation: rank, rank + world, ... in order, every sample
/// exactly once over all ranks, nothing repeated to fill up.
struct Sampler {
  int64_t size = 0;   // samples in the source
  int64_t batch = 1;  // samples a batch and rank, > 0
  int64_t rank = 0;   // 0 .. world - 1
  int64_t world = 1;  // ranks, > 0
  bool train = true;
  uint64_t seed = 0;

  /// Errors: std::invalid_argument for members out of range, or a source smaller than one batch of all ranks in
  /// training.
  std::vector<int64_t> indices(int64_t epoch) const {
    if (size < 0 || batch <= 0 || world <= 0 || rank < 0 || rank >= world || epoch < 0) {
      throw std::invalid_argument(
          "Sampler: expected size >= 0, batch > 0, world > 0, rank in 0..world-1 and epoch >= 0, got " +
          std::to_string(size) + ", " + std::to_string(batch) + ", " + std::to_string(world) + ", " +
          std::to_string(rank) + ", " + std::to_string(epoch));
    }
    std::vector<int64_t> out;
    if (!train) {
      for (int64_t i = rank; i < size; i += world) out.push_back(i);
      return out;
    }
    if (size < world * batch) {
      throw std::invalid_argument("Sampler: " + std::to_string(size) + " samples are fewer than one batch of " +
                                  std::to_string(batch) + " on each of " + std::to_string(world) + " ranks");
    }
    const std::vector<int64_t> order = permutation(size, Random{seed, static_cast<uint64_t>(epoch), 0x5A3B});
    const int64_t batches = size / (world * batch);
    for (int64_t b = 0; b < batches; ++b) {
      const auto begin = order.begin() + static_cast<std::ptrdiff_t>((b * world + rank) * batch);
      out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(batch));
    }
    return out;
  }
};

}  // namespace moecod::data
