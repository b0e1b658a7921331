#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include <moecod/metric/contours.hpp>

namespace moecod::metric {

/// How many points are left of an open line of pixels after it is simplified to within `tolerance` pixels.
///
/// A stretch is replaced by the segment between its ends if no point is farther from it than the tolerance, else cut at
/// the farthest (the first of several). Afterwards a point is dropped if it lies within tolerance / sqrt 2 of the line
/// through its neighbours, between them, and that line is neither a row nor a column; the next point is then kept.
/// Equal to OpenCV's approxPolyDP of an open curve, for points of which no two are the same.
/// Errors: std::invalid_argument if two ends of a stretch are the same.
/// Source: Ramer 1972; Douglas and Peucker 1973.
inline int64_t simplified_size(const std::vector<Point>& line, double tolerance) {
  if (line.size() <= 2) {
    return static_cast<int64_t>(line.size());
  }
  const double squared = tolerance * tolerance;
  const auto offset = [](const Point& from, const Point& to) {
    return std::pair{static_cast<double>(to.column - from.column), static_cast<double>(to.row - from.row)};
  };

  std::vector<Point> kept;
  std::vector<std::pair<std::size_t, std::size_t>> stretches{{0, line.size() - 1}};
  while (!stretches.empty()) {
    const auto [first, last] = stretches.back();
    stretches.pop_back();
    const auto [dx, dy] = offset(line[first], line[last]);
    const double length = dx * dx + dy * dy;
    if (length == 0) {
      throw std::invalid_argument("simplified_size: expected a line that passes no pixel twice");
    }
    double farthest = 0;
    std::size_t cut = first;
    for (std::size_t i = first + 1; i < last; ++i) {
      const auto [x, y] = offset(line[first], line[i]);
      const double along = x * dx + y * dy;
      double distance = 0;  // squared, times length
      if (along < 0) {
        distance = (x * x + y * y) * length;
      } else if (along > length) {
        distance = ((x - dx) * (x - dx) + (y - dy) * (y - dy)) * length;
      } else {
        distance = (y * dx - x * dy) * (y * dx - x * dy);
      }
      if (distance > farthest) {
        farthest = distance;
        cut = i;
      }
    }
    if (farthest <= squared * length) {
      kept.push_back(line[first]);
    } else {
      stretches.push_back({cut, last});
      stretches.push_back({first, cut});
    }
  }
  kept.push_back(line.back());

  auto size = static_cast<int64_t>(kept.size());
  Point before = kept[0];
  for (std::size_t i = 1; i + 1 < kept.size() && size > 2; ++i) {
    const auto [dx, dy] = offset(before, kept[i + 1]);
    const auto [x, y] = offset(before, kept[i]);
    const double across = x * dy - y * dx;
    const bool is_between = x * (dx - x) + y * (dy - y) >= 0;
    if (across * across <= 0.5 * squared * (dx * dx + dy * dy) && dx != 0 && dy != 0 && is_between) {
      --size;
      ++i;
    }
    before = kept[i];
  }
  return size;
}

}  // namespace moecod::metric
