#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace moecod::metric {

/// Which pixels touch: the 4 that share an edge, or those and the 4 that share a corner.
enum class Connectivity { kEdges, kCorners };

/// Connected components of a binary map. labels[pixel] is 0 outside the set and 1 ... count inside; components are
/// numbered in the order in which their first pixels stand, row by row.
struct Components {
  int32_t count = 0;
  std::vector<int32_t> labels;
};

/// Components of the pixels for which contains(pixel) is true. O(height * width).
template <class Contains>
Components connected_components(int64_t height, int64_t width, Connectivity connectivity, const Contains& contains) {
  constexpr std::array<std::pair<int, int>, 8> kSteps{
      {{-1, 0}, {0, -1}, {0, 1}, {1, 0}, {-1, -1}, {-1, 1}, {1, -1}, {1, 1}}};
  const std::size_t steps = connectivity == Connectivity::kEdges ? 4 : 8;
  Components components{0, std::vector<int32_t>(static_cast<std::size_t>(height * width), 0)};
  std::vector<int64_t> waiting;
  for (int64_t seed = 0; seed < height * width; ++seed) {
    if (components.labels[seed] != 0 || !contains(seed)) {
      continue;
    }
    components.labels[seed] = ++components.count;
    waiting.push_back(seed);
    while (!waiting.empty()) {
      const int64_t pixel = waiting.back();
      waiting.pop_back();
      for (std::size_t step = 0; step < steps; ++step) {
        const int64_t row = pixel / width + kSteps[step].first;
        const int64_t column = pixel % width + kSteps[step].second;
        if (row < 0 || row >= height || column < 0 || column >= width) {
          continue;
        }
        const int64_t next = row * width + column;
        if (components.labels[next] == 0 && contains(next)) {
          components.labels[next] = components.count;
          waiting.push_back(next);
        }
      }
    }
  }
  return components;
}

}  // namespace moecod::metric
