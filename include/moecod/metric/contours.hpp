#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <moecod/metric/binary_map.hpp>
#include <moecod/metric/components.hpp>

namespace moecod::metric {

/// A pixel by row and column.
struct Point {
  int64_t row = 0;
  int64_t column = 0;

  friend bool operator==(const Point&, const Point&) = default;
};

/// A closed walk along pixels that touch by edges or corners; it may pass a pixel more than once.
using Contour = std::vector<Point>;

namespace detail {

/// Walks around a component, or around a hole in one, along its pixels. The start has a free side: the left one for an
/// outline, the right one (`of_hole`) for a hole. The background lies to the right hand of the walk.
inline Contour walk(const BinaryMap& map, const Point& start, bool of_hole) {
  // Counter-clockwise from the right.
  constexpr std::array<Point, 8> kSteps{{{0, 1}, {-1, 1}, {-1, 0}, {-1, -1}, {0, -1}, {1, -1}, {1, 0}, {1, 1}}};
  const auto neighbour = [&](const Point& point, int direction) {
    const Point& step = kSteps[static_cast<std::size_t>(direction & 7)];
    return Point{point.row + step.row, point.column + step.column};
  };
  const auto is_set = [&](const Point& point) { return map.at(point.row, point.column); };

  const int free_side = of_hole ? 0 : 4;
  int direction = free_side;
  do {
    --direction;
  } while (!is_set(neighbour(start, direction)) && ((direction - free_side) & 7) != 0);
  if (((direction - free_side) & 7) == 0) {
    return {start};
  }
  const Point last = neighbour(start, direction);
  Contour contour;
  for (Point point = start;;) {
    do {
      ++direction;
    } while (!is_set(neighbour(point, direction)));
    contour.push_back(point);
    const Point next = neighbour(point, direction);
    if (next == start && point == last) {
      return contour;
    }
    point = next;
    direction += 4;
  }
}

}  // namespace detail

/// Outlines of the components (8-connected) of a set and of the holes (4-connected) in them, all pixels of each, in the
/// order of OpenCV's findContours with RETR_TREE and CHAIN_APPROX_NONE.
///
/// A contour's parent is the one around it. Parents come before their children, children of one parent in the reverse
/// of the order in which a scan row by row meets them, each followed by its own. An outline starts at its first pixel
/// in that scan, that of a hole at the pixel left of the hole's first one.
/// Source: Suzuki and Abe, Topological Structural Analysis of Digitized Binary Images by Border Following, 1985.
inline std::vector<Contour> contours(const BinaryMap& map) {
  const int64_t height = map.height();
  const int64_t width = map.width();
  const Components parts =
      connected_components(height, width, Connectivity::kCorners, [&](int64_t pixel) { return map[pixel]; });
  // With a margin, so that all that surrounds the parts is one component, with the first label.
  const int64_t stride = width + 2;
  const Components gaps = connected_components(height + 2, stride, Connectivity::kEdges, [&](int64_t pixel) {
    return !map.at(pixel / stride - 1, pixel % stride - 1);
  });
  const auto gap_at = [&](int64_t row, int64_t column) { return gaps.labels[(row + 1) * stride + column + 1]; };

  struct Node {
    Contour contour;
    std::vector<std::size_t> children;
  };
  std::vector<Node> nodes(1);  // the first stands for what surrounds everything
  std::vector<std::size_t> node_of_part(static_cast<std::size_t>(parts.count) + 1, 0);
  std::vector<std::size_t> node_of_gap(static_cast<std::size_t>(gaps.count) + 1, 0);
  const auto add = [&](std::size_t parent, Contour contour) {
    nodes.push_back({std::move(contour), {}});
    nodes[parent].children.push_back(nodes.size() - 1);
    return nodes.size() - 1;
  };
  for (int64_t row = 0; row < height; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const int64_t pixel = row * width + column;
      if (map[pixel]) {
        std::size_t& node = node_of_part[parts.labels[pixel]];
        if (node == 0) {
          node = add(node_of_gap[gap_at(row, column - 1)], detail::walk(map, {row, column}, false));
        }
      } else if (const int32_t gap = gap_at(row, column); gap != 1) {
        std::size_t& node = node_of_gap[gap];
        if (node == 0) {
          node = add(node_of_part[parts.labels[pixel - 1]], detail::walk(map, {row, column - 1}, true));
        }
      }
    }
  }

  std::vector<Contour> ordered;
  std::vector<std::size_t> waiting{0};
  while (!waiting.empty()) {
    const std::size_t node = waiting.back();
    waiting.pop_back();
    if (node != 0) {
      ordered.push_back(std::move(nodes[node].contour));
    }
    // The last child is the next to be taken.
    waiting.insert(waiting.end(), nodes[node].children.begin(), nodes[node].children.end());
  }
  return ordered;
}

}  // namespace moecod::metric
