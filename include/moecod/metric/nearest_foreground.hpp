#pragma once

#include <cstdint>
#include <vector>

#include <moecod/metric/map_pair.hpp>

namespace moecod::metric {

/// Calls visit(row, column, nearest_row, nearest_column) for every background pixel of the truth, in row-major order,
/// with the foreground pixel at the smallest Euclidean distance. Exact, O(height * width).
///
/// Ties follow scipy.ndimage.distance_transform_edt: first the nearest foreground row within each column (of two, the
/// upper), then the nearest of these over the columns (of several, the leftmost).
/// Needs at least one foreground pixel; without one it visits nothing.
/// Source: Maurer et al., A Linear Time Algorithm for Computing Exact Euclidean Distance Transforms, PAMI 2003.
template <class Visit>
void visit_nearest_foreground(const MapPair& pair, const Visit& visit) {
  constexpr int32_t kNone = -1;
  const int64_t height = pair.height;
  const int64_t width = pair.width;

  // nearest_row[row, column]: the row of the nearest foreground pixel in the same column.
  std::vector<int32_t> nearest_row(static_cast<size_t>(height * width));
  std::vector<int32_t> above(static_cast<size_t>(width), kNone);
  for (int64_t row = 0; row < height; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const int64_t pixel = row * width + column;
      above[column] = pair.is_foreground(pixel) ? static_cast<int32_t>(row) : above[column];
      nearest_row[pixel] = above[column];
    }
  }
  for (int64_t row = height - 2; row >= 0; --row) {
    for (int64_t column = 0; column < width; ++column) {
      const int64_t pixel = row * width + column;
      const int32_t upper = nearest_row[pixel];
      const int32_t lower = nearest_row[pixel + width];
      const bool lower_is_nearer = upper == kNone || lower - row < row - upper;
      nearest_row[pixel] = lower > row && lower_is_nearer ? lower : upper;
    }
  }

  struct Site {
    int64_t column;
    int64_t squared_height;  // squared distance from the row to this column's foreground pixel
  };
  std::vector<Site> sites(static_cast<size_t>(width));
  for (int64_t row = 0; row < height; ++row) {
    const int32_t* const rows = nearest_row.data() + row * width;
    int64_t count = 0;
    for (int64_t column = 0; column < width; ++column) {
      if (rows[column] == kNone) {
        continue;
      }
      const Site next{column, (row - rows[column]) * (row - rows[column])};
      const auto hides_last = [&] {
        const Site& first = sites[count - 2];
        const Site& last = sites[count - 1];
        const int64_t a = last.column - first.column;
        const int64_t b = next.column - last.column;
        return (a + b) * last.squared_height - b * first.squared_height - a * next.squared_height >
               a * b * (a + b);
      };
      while (count >= 2 && hides_last()) {
        --count;
      }
      sites[count++] = next;
    }
    if (count == 0) {
      return;
    }
    int64_t current = 0;
    for (int64_t column = 0; column < width; ++column) {
      const auto squared_distance = [&](const Site& site) {
        return (column - site.column) * (column - site.column) + site.squared_height;
      };
      while (current + 1 < count && squared_distance(sites[current + 1]) < squared_distance(sites[current])) {
        ++current;
      }
      if (!pair.is_foreground(row * width + column)) {
        const int64_t nearest_column = sites[current].column;
        visit(row, column, int64_t{rows[nearest_column]}, nearest_column);
      }
    }
  }
}

}  // namespace moecod::metric
