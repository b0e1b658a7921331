#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"

namespace moecod::data {

/// Photographs for training, validation and testing; none is in two of them.
struct PhotographSplit {
  std::vector<Photograph> train;
  std::vector<Photograph> validation;
  std::vector<Photograph> test;
};

struct SplitOptions {
  int64_t validation = 2;  // photographs; at least 2
  int64_t test = 3;        // photographs; at least 3
  uint64_t seed = 0;
};

/// Splits by photograph, so that no texture of a test picture was seen in training. A function of the set of names
/// and the seed: the photographs are sorted by name, then permuted.
/// Errors: std::invalid_argument for two photographs of one name, for too few to leave two for training, or for
/// fewer than 2 for validation or 3 for testing.
inline PhotographSplit split_photographs(std::vector<Photograph> photographs, const SplitOptions& options = {}) {
  if (options.validation < 2 || options.test < 3) {
    throw std::invalid_argument("split_photographs: expected at least 2 validation and 3 test photographs, got " +
                                std::to_string(options.validation) + " and " + std::to_string(options.test));
  }
  const auto count = static_cast<int64_t>(photographs.size());
  if (count < options.validation + options.test + 2) {
    throw std::invalid_argument("split_photographs: expected at least " +
                                std::to_string(options.validation + options.test + 2) + " photographs (" +
                                std::to_string(options.test) + " test, " + std::to_string(options.validation) +
                                " validation, 2 training), got " + std::to_string(count));
  }
  const auto by_name = [](const Photograph& a, const Photograph& b) { return a.name() < b.name(); };
  std::sort(photographs.begin(), photographs.end(), by_name);
  for (std::size_t i = 1; i < photographs.size(); ++i) {
    if (photographs[i].name() == photographs[i - 1].name()) {
      throw std::invalid_argument("split_photographs: two photographs are named " + photographs[i].name());
    }
  }
  PhotographSplit split;
  const std::vector<int64_t> order = permutation(count, Random{options.seed, 0x5B117});
  for (int64_t i = 0; i < count; ++i) {
    auto& part = i < options.test                        ? split.test
                 : i < options.test + options.validation ? split.validation
                                                         : split.train;
    part.push_back(std::move(photographs[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])]));
  }
  for (auto* part : {&split.train, &split.validation, &split.test}) std::sort(part->begin(), part->end(), by_name);
  return split;
}

}  // namespace moecod::data
