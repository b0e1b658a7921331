#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>

#include "moecod/data/random.hpp"
#include "moecod/data/records.hpp"

namespace moecod::data {

/// Splits a training set into a part to train on and a part to validate on, at least one pair each; a function of the
/// names' order, the share and the seed. Both parts stay in the order of their names.
/// Errors: std::invalid_argument for a share outside (0, 1) or fewer than two pairs.
inline std::pair<Records, Records> hold_out(const Records& all, double share, uint64_t seed = 0) {
  const auto count = static_cast<int64_t>(all.records.size());
  if (!(share > 0 && share < 1) || count < 2) {
    throw std::invalid_argument("hold_out: expected a share in (0, 1) and at least two pairs, got " +
                                std::to_string(share) + " and " + std::to_string(count));
  }
  const int64_t held = std::clamp<int64_t>(static_cast<int64_t>(share * static_cast<double>(count)), 1, count - 1);
  std::vector<int64_t> order = permutation(count, Random{seed, 0x401D});
  std::sort(order.begin(), order.begin() + held);
  std::sort(order.begin() + held, order.end());
  Records train{all.layout, {}, all.problems}, validation{all.layout, {}, {}};
  for (int64_t i = 0; i < count; ++i) {
    auto& part = i < held ? validation : train;
    part.records.push_back(all.records[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])]);
  }
  return {std::move(train), std::move(validation)};
}

/// The training and the validation part of a data set: the validation part that it lists (data/records.hpp), or, where it
/// lists none, one held out. Errors: as open and hold_out.
inline std::pair<Records, Records> open_training(const std::filesystem::path& root, double share, uint64_t seed) {
  Records training = open(root, Split::Train);
  if (!std::filesystem::exists(root / "Info" / "CAM_val.txt")) return hold_out(training, share, seed);
  return {std::move(training), open(root, Split::Validation)};
}

}  // namespace moecod::data
