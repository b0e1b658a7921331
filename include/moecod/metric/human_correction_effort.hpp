#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include <moecod/metric/binary_map.hpp>
#include <moecod/metric/components.hpp>
#include <moecod/metric/contours.hpp>
#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/polyline.hpp>
#include <moecod/metric/skeleton.hpp>

namespace moecod::metric {

/// Human correction effort: about how many clicks would mend the prediction v > 0.5.
///
/// False areas that 5 erosions of (truth or prediction) by a cross remove need no mending; what is left is grown back
/// by 5 dilations within the false area. The parts of the truth's skeleton that are missed count as missing. Then
///   - an area (8-connected) that does not border on its opposite costs 1 click, to delete it or to add it,
///   - the outlines of the others, where they run along the opposite, cost a click per corner once they are simplified
///     to within 2 pixels (see polyline.hpp).
/// The opposite of an excess is what is right or missing, that of a missing area what is neither right nor mended.
/// A pixel on several outlines belongs to the first, in the order of contours.hpp.
///
/// A count, 0 is best; it grows with the size of the image.
/// Source: Qin et al., Highly Accurate Dichotomous Image Segmentation, ECCV 2022; PySODMetrics,
/// HumanCorrectionEffortMeasure.
struct HumanCorrectionEffort {
  static constexpr const char* name = "hce";

  static double of(const ImageStatistics& image) {
    const MapPair& pair = image.pair();
    const auto map_of = [&](const auto& contains) { return BinaryMap(pair.height, pair.width, contains); };
    const BinaryMap truth = map_of([&](int64_t pixel) { return pair.is_foreground(pixel); });
    const BinaryMap prediction = map_of([&](int64_t pixel) { return image.value(pair.prediction[pixel]) > 0.5; });
    const BinaryMap core =
        repeated(map_of([&](int64_t pixel) { return truth[pixel] || prediction[pixel]; }), [](const BinaryMap& map) {
          return map.eroded();
        });
    const auto grown_within = [&](const auto& is_false) {
      return repeated(map_of([&](int64_t pixel) { return is_false(pixel) && core[pixel]; }), [&](const BinaryMap& map) {
        const BinaryMap grown = map.dilated();
        return map_of([&](int64_t pixel) { return grown[pixel] && is_false(pixel); });
      });
    };
    const auto is_right = [&](int64_t pixel) { return truth[pixel] && prediction[pixel]; };
    const BinaryMap excess = grown_within([&](int64_t pixel) { return prediction[pixel] && !truth[pixel]; });
    const BinaryMap grown = grown_within([&](int64_t pixel) { return truth[pixel] && !prediction[pixel]; });
    const BinaryMap bones = skeleton(truth);
    const BinaryMap missing =
        map_of([&](int64_t pixel) { return grown[pixel] || (bones[pixel] && !prediction[pixel]); });

    const BinaryMap beside_excess = map_of([&](int64_t pixel) { return is_right(pixel) || missing[pixel]; });
    const BinaryMap beside_missing =
        map_of([&](int64_t pixel) { return !(is_right(pixel) || excess[pixel] || missing[pixel]); });
    return static_cast<double>(clicks(excess, beside_excess.dilated()) + clicks(missing, beside_missing.dilated()));
  }

 private:
  static constexpr int kRelax = 5;
  static constexpr double kTolerance = 2;

  template <class Step>
  static BinaryMap repeated(BinaryMap map, const Step& step) {
    for (int i = 0; i < kRelax; ++i) {
      map = step(map);
    }
    return map;
  }

  /// Clicks to mend the false areas, of whose outlines the parts in `beside` are drawn.
  static int64_t clicks(const BinaryMap& areas, const BinaryMap& beside) {
    const Components parts = connected_components(areas.height(), areas.width(), Connectivity::kCorners,
                                                  [&](int64_t pixel) { return areas[pixel]; });
    std::vector<bool> is_drawn(static_cast<std::size_t>(parts.count) + 1, false);
    BinaryMap visited(areas.height(), areas.width());
    int64_t count = 0;
    for (const Contour& contour : contours(areas)) {
      std::vector<std::vector<Point>> lines;
      bool is_new = true;
      for (const Point& point : contour) {
        const int64_t pixel = point.row * areas.width() + point.column;
        if (!beside[pixel] || visited[pixel]) {
          is_new = true;
          continue;
        }
        if (is_new) {
          lines.emplace_back();
          is_new = false;
        }
        lines.back().push_back(point);
        visited.set(pixel, true);
        is_drawn[parts.labels[pixel]] = true;
      }
      join_ends(lines);
      for (const std::vector<Point>& line : lines) {
        count += simplified_size(line, kTolerance);
      }
    }
    for (int32_t part = 1; part <= parts.count; ++part) {
      count += is_drawn[part] ? 0 : 1;
    }
    return count;
  }

  /// If the last line of a contour ends beside the start of the first, the first is appended to it, backwards: the
  /// reference's order, which makes the joint a corner.
  static void join_ends(std::vector<std::vector<Point>>& lines) {
    if (lines.size() < 2) {
      return;
    }
    const Point& start = lines.front().front();
    const Point& end = lines.back().back();
    if (std::abs(start.row - end.row) <= 1 && std::abs(start.column - end.column) <= 1) {
      lines.back().insert(lines.back().end(), lines.front().rbegin(), lines.front().rend());
      lines.erase(lines.begin());
    }
  }
};

}  // namespace moecod::metric
