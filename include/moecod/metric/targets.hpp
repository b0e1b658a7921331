#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <moecod/metric/components.hpp>
#include <moecod/metric/map_pair.hpp>

namespace moecod::metric {

/// A rectangle of pixels: rows top ... bottom - 1, columns left ... right - 1.
struct Box {
  int64_t top = 0;
  int64_t left = 0;
  int64_t bottom = 0;
  int64_t right = 0;

  int64_t size() const { return (bottom - top) * (right - left); }

  friend bool operator==(const Box&, const Box&) = default;
};

/// The objects of a truth, as the size-invariant metrics see them: the bounding box of every component (4-connected) of
/// at least 50 pixels; if there is none, of every component of the largest size. Boxes may overlap, and smaller
/// components lie in them or outside. Empty if the truth is empty.
///
/// The reference marks boxes by the bits of a double, and so fails from the 64th object on and may lose bits from the
/// 54th; here their number does not matter.
/// Source: Li et al., Size-invariance Matters, ICML 2024; PySODMetrics, size_invariance.
inline std::vector<Box> targets(const MapPair& pair) {
  constexpr int64_t kSmallest = 50;
  const Components components = connected_components(pair.height, pair.width, Connectivity::kEdges,
                                                     [&](int64_t pixel) { return pair.is_foreground(pixel); });
  struct Extent {
    Box box;
    int64_t area = 0;
  };
  std::vector<Extent> extents(static_cast<std::size_t>(components.count), {{pair.height, pair.width, 0, 0}, 0});
  for (int64_t row = 0; row < pair.height; ++row) {
    for (int64_t column = 0; column < pair.width; ++column) {
      const int32_t label = components.labels[row * pair.width + column];
      if (label == 0) {
        continue;
      }
      auto& [box, area] = extents[label - 1];
      box.top = std::min(box.top, row);
      box.left = std::min(box.left, column);
      box.bottom = std::max(box.bottom, row + 1);
      box.right = std::max(box.right, column + 1);
      ++area;
    }
  }
  int64_t largest = 0;
  for (const Extent& extent : extents) {
    largest = std::max(largest, extent.area);
  }
  std::vector<Box> boxes;
  for (const Extent& extent : extents) {
    if (extent.area >= std::min(kSmallest, largest)) {
      boxes.push_back(extent.box);
    }
  }
  return boxes;
}

}  // namespace moecod::metric
