#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <moecod/metric/accumulator.hpp>

namespace moecod::metric {

/// Multi-scale IoU of the edges of a binary prediction, at every threshold.
///
/// A pixel is an edge if a Sobel derivative of its map (zeros around) is not 0. The image is covered by cells of 1, 2,
/// 4, ... 512 pixels a side, from its lower right corner; a cell is an edge if one of its pixels is. A scale's score is
///     (1 + cells that are edges of both) / (1 + cells that are edges of the truth),
/// and the figure is the area under the ten scores, by trapezoids of width 1/9. Range (0, 1], 1 is best.
///   msiou_max, msiou_mean   the curve over thresholds trunc(255 v) >= 0 ... 256, averaged over the images first
///   msiou_adaptive          v >= min(2 mean, 1)
///   msiou_binary            v > 0.5
/// Despite the name no union is taken: false edges cost nothing.
///
/// The reference counts the truth's cells in half precision: a denominator above 2048 is rounded to 11 bits, and one
/// from 65520 on is infinite, so that the score is 0. Kept, for equal figures.
///
/// All thresholds at once: a pixel holds one bit for each, sums of bits are taken bit by bit. Memory O(1) beside
/// padded copies of the maps.
/// Source: Ahmadzadeh et al., Multiscale IOU, ICIP 2021; PySODMetrics, MSIoU.
class MultiScaleIou {
 public:
  /// Thresholds 0 ... 256 of the curve.
  static constexpr int kThresholds = 257;

  /// The figures of one image.
  struct Scores {
    std::array<double, kThresholds> curve{};
    double adaptive = 0;
    double binary = 0;
  };

  static Scores of(const ImageStatistics& image) { return Edges(image).scores(); }

  void add(const ImageStatistics& image) {
    const Scores scores = of(image);
    for (int threshold = 0; threshold < kThresholds; ++threshold) {
      curve_[threshold].add(scores.curve[threshold]);
    }
    adaptive_.add(scores.adaptive);
    binary_.add(scores.binary);
  }

  void merge(const MultiScaleIou& other) {
    for (int threshold = 0; threshold < kThresholds; ++threshold) {
      curve_[threshold].merge(other.curve_[threshold]);
    }
    adaptive_.merge(other.adaptive_);
    binary_.merge(other.binary_);
  }

  void results(std::vector<NamedValue>& out) const {
    double highest = 0;
    double sum = 0;
    for (const ExactMean& mean : curve_) {
      highest = std::max(highest, mean.value());
      sum += mean.value();
    }
    out.push_back({"msiou_max", highest});
    out.push_back({"msiou_mean", sum / kThresholds});
    out.push_back({"msiou_adaptive", adaptive_.value()});
    out.push_back({"msiou_binary", binary_.value()});
  }

 private:
  static constexpr std::size_t kScales = 10;
  // One bit per binary map: thresholds 0 ... 255 (at 256 the map is empty), adaptive, binary.
  static constexpr std::size_t kAdaptive = kLevels;
  static constexpr std::size_t kBinary = kLevels + 1;
  static constexpr std::size_t kMaps = kLevels + 2;
  using Maps = std::bitset<kMaps>;

  class Edges {
   public:
    explicit Edges(const ImageStatistics& image)
        : pair_(image.pair()),
          stride_(pair_.width + 2),
          levels_(static_cast<std::size_t>((pair_.height + 2) * stride_), kOutside),
          truth_(levels_.size(), 0) {
      const double adaptive = std::min(2 * image.mean(), 1.0);
      for (int level = 0; level < kLevels; ++level) {
        const double value = image.values()[level];
        for (int threshold = 0; threshold <= static_cast<int>(value * 255); ++threshold) {
          contains_[level].set(threshold);
        }
        contains_[level].set(kAdaptive, value >= adaptive);
        contains_[level].set(kBinary, value > 0.5);
      }
      for (int64_t row = 0; row < pair_.height; ++row) {
        for (int64_t column = 0; column < pair_.width; ++column) {
          levels_[at(row, column)] = pair_.prediction[row * pair_.width + column];
          truth_[at(row, column)] = pair_.is_foreground(row * pair_.width + column) ? 1 : 0;
        }
      }
      const int64_t side = int64_t{1} << (kScales - 1);
      for (int64_t row = 0; row * side < pair_.height; ++row) {
        for (int64_t column = 0; column * side < pair_.width; ++column) {
          visit(kScales - 1, row, column);
        }
      }
    }

    Scores scores() const {
      Scores scores;
      for (int map = 0; map < kLevels; ++map) {
        scores.curve[map] = area([&](std::size_t scale) { return both_[scale][map]; });
      }
      scores.curve[kLevels] = area([](std::size_t) { return int64_t{0}; });
      scores.adaptive = area([&](std::size_t scale) { return both_[scale][kAdaptive]; });
      scores.binary = area([&](std::size_t scale) { return both_[scale][kBinary]; });
      return scores;
    }

   private:
    static constexpr uint16_t kOutside = kLevels;

    struct Cell {
      Maps prediction;
      bool truth = false;
    };

    int64_t at(int64_t row, int64_t column) const { return (row + 1) * stride_ + column + 1; }

    /// The cell of side 2^scale at (row, column), numbered from the lower right corner; counts it and its parts.
    Cell visit(std::size_t scale, int64_t row, int64_t column) {
      Cell cell;
      if (scale == 0) {
        cell = edges_at(at(pair_.height - 1 - row, pair_.width - 1 - column));
      } else {
        const int64_t side = int64_t{1} << (scale - 1);
        for (int64_t r = 2 * row; r < 2 * row + 2 && r * side < pair_.height; ++r) {
          for (int64_t c = 2 * column; c < 2 * column + 2 && c * side < pair_.width; ++c) {
            const Cell part = visit(scale - 1, r, c);
            cell.prediction |= part.prediction;
            cell.truth |= part.truth;
          }
        }
      }
      if (cell.truth) {
        ++truth_cells_[scale];
        for (std::size_t map = 0; map < kMaps; ++map) {
          both_[scale][map] += cell.prediction[map] ? 1 : 0;
        }
      }
      return cell;
    }

    Cell edges_at(int64_t center) const {
      const std::array<int64_t, 8> ring{center - stride_ - 1, center - stride_,     center - stride_ + 1, center + 1,
                                        center + stride_ + 1, center + stride_,     center + stride_ - 1, center - 1};
      Cell cell;
      const auto truth = [&](std::size_t i) { return int{truth_[ring[i % 8]]}; };
      const auto side = [&](std::size_t i) { return truth(i) + 2 * truth(i + 1) + truth(i + 2); };
      cell.truth = side(0) != side(4) || side(2) != side(6);
      const uint16_t first = levels_[ring[0]];
      if (std::any_of(ring.begin() + 1, ring.end(), [&](int64_t pixel) { return levels_[pixel] != first; })) {
        const auto maps = [&](std::size_t i) -> const Maps& { return contains_[levels_[ring[i % 8]]]; };
        cell.prediction = differ(maps, 0, 4) | differ(maps, 2, 6);
      }
      return cell;
    }

    /// In which maps the weighted sums 1, 2, 1 of two opposite sides of the ring differ. Three binary digits each.
    template <class At>
    static Maps differ(const At& maps, std::size_t i, std::size_t j) {
      const auto digits = [&](std::size_t k) {
        const Maps carry = maps(k) & maps(k + 2);
        return std::array<Maps, 3>{maps(k) ^ maps(k + 2), carry ^ maps(k + 1), carry & maps(k + 1)};
      };
      const std::array<Maps, 3> a = digits(i);
      const std::array<Maps, 3> b = digits(j);
      return (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]);
    }

    template <class Both>
    double area(const Both& both) const {
      double sum = 0;
      double previous = 0;
      for (std::size_t scale = 0; scale < kScales; ++scale) {
        const double denominator = half(half(static_cast<double>(truth_cells_[scale])) + 1);
        const double score = static_cast<double>(both(scale) + 1) / denominator;
        sum += scale == 0 ? 0 : (previous + score) / 2;
        previous = score;
      }
      return sum / static_cast<double>(kScales - 1);
    }

    /// A count as IEEE half precision holds it: 11 significant bits, ties to even, infinite from 65520 on.
    static double half(double count) {
      if (count >= 65520) {
        return HUGE_VAL;
      }
      const double unit = count < 2048 ? 1 : std::ldexp(1.0, std::ilogb(count) - 10);
      return std::nearbyint(count / unit) * unit;
    }

    MapPair pair_;
    int64_t stride_;
    std::vector<uint16_t> levels_;  // [height + 2, width + 2], kOutside around
    std::vector<uint8_t> truth_;    // [height + 2, width + 2], 0 around
    std::array<Maps, kLevels + 1> contains_;  // per level the maps that contain it; none for kOutside
    std::array<int64_t, kScales> truth_cells_{};
    std::array<std::array<int64_t, kMaps>, kScales> both_{};
  };

  std::array<ExactMean, kThresholds> curve_;
  ExactMean adaptive_;
  ExactMean binary_;
};

}  // namespace moecod::metric
