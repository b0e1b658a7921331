#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <moecod/metric/binary_map.hpp>

namespace moecod::metric {

namespace detail {

/// Whether a pixel with these neighbours goes in the first pass (bit 0) and in the second (bit 1). Bit i of the
/// neighbours: clockwise from the upper left, so that the odd bits are N, E, S, W.
inline constexpr std::array<uint8_t, 256> kThinning = [] {
  std::array<uint8_t, 256> passes{};
  for (unsigned neighbours = 0; neighbours < 256; ++neighbours) {
    const auto has = [&](unsigned i) { return (neighbours >> (i % 8) & 1U) != 0; };
    int count = 0;
    int rises = 0;
    for (unsigned i = 0; i < 8; ++i) {
      count += has(i) ? 1 : 0;
      rises += !has(i) && has(i + 1) ? 1 : 0;
    }
    const bool north = has(1);
    const bool east = has(3);
    const bool south = has(5);
    const bool west = has(7);
    if (count < 2 || count > 6 || rises != 1) {
      continue;
    }
    passes[neighbours] = static_cast<uint8_t>((!(east && south && (north || west)) ? 1 : 0) |
                                              (!(north && west && (east || south)) ? 2 : 0));
  }
  // Where scikit-image differs: ends of lines last longer, steps are taken off.
  constexpr std::pair<uint8_t, uint8_t> kDifferences[] = {
      {3, 1},   {6, 1},   {12, 1},  {14, 1},  {131, 1}, {24, 2},  {56, 2},  {96, 2},  {192, 2},
      {224, 2}, {48, 0},  {129, 0},                                                               // ends
      {10, 3},  {40, 3},  {130, 3}, {160, 3}, {11, 1},  {134, 1}, {161, 1}, {194, 1}, {198, 1},
      {26, 2},  {104, 2}, {108, 2}, {176, 2}};                                                    // steps
  for (const auto& [neighbours, pass] : kDifferences) {
    passes[neighbours] = pass;
  }
  return passes;
}();

}  // namespace detail

/// The set thinned to lines of one pixel, as scikit-image's skeletonize does in two dimensions.
///
/// Two passes take turns until nothing goes. With N, E, S, W the neighbours by edges, a pixel goes if it has 2 to 6 of
/// 8 neighbours, in one run around it, and
///     not (E and S and (N or W)) in the first pass,    not (N and W and (E or S)) in the second,
/// decided for all pixels of a pass at once. 25 of the 256 neighbourhoods are decided otherwise; they are listed above.
/// Beyond the image there is nothing.
/// Source: Zhang and Suen, A fast parallel algorithm for thinning digital patterns, CACM 1984; scikit-image 0.25.
inline BinaryMap skeleton(BinaryMap map) {
  std::vector<int64_t> left;
  for (int64_t pixel = 0; pixel < map.size(); ++pixel) {
    if (map[pixel]) {
      left.push_back(pixel);
    }
  }
  std::vector<int64_t> going;
  for (std::size_t before = left.size() + 1; left.size() < before;) {
    before = left.size();
    for (const int pass : {1, 2}) {
      going.clear();
      for (const int64_t pixel : left) {
        const int64_t row = pixel / map.width();
        const int64_t column = pixel % map.width();
        const unsigned neighbours = (map.at(row - 1, column - 1) ? 1U : 0U) | (map.at(row - 1, column) ? 2U : 0U) |
                                    (map.at(row - 1, column + 1) ? 4U : 0U) | (map.at(row, column + 1) ? 8U : 0U) |
                                    (map.at(row + 1, column + 1) ? 16U : 0U) | (map.at(row + 1, column) ? 32U : 0U) |
                                    (map.at(row + 1, column - 1) ? 64U : 0U) | (map.at(row, column - 1) ? 128U : 0U);
        if ((detail::kThinning[neighbours] & pass) != 0) {
          going.push_back(pixel);
        }
      }
      for (const int64_t pixel : going) {
        map.set(pixel, false);
      }
      std::erase_if(left, [&](int64_t pixel) { return !map[pixel]; });
    }
  }
  return map;
}

}  // namespace moecod::metric
