#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <moecod/metric/color_difference.hpp>
#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/lab_color.hpp>

namespace moecod::metric {

/// How well each foreground pixel of the truth could be painted with patches of the background around it, in [0, 1]:
/// 1 where the painting has the same colour, near 0 for a colour that does not occur there.
///
/// Patches are 7 x 7 at every third row and column. Those wholly in the foreground are replaced by those wholly in the
/// ring around it: background pixels with foreground 10 up to 9 down, and 10 to the left up to 9 to the right. Each by
/// the nearest in 8-bit L*a*b* values and 20 times the standardised corner, Euclidean, float32 features; of several at
/// one distance by the first, row by row (the reference may take another). Where patches overlap the painting is their
/// mean; where none lies it is black. With dE the CIEDE2000 difference between painting and image,
///     degree = (exp(8 s) - 1) / (exp(8) - 1),    s = 1 - min(1, dE / 100).
/// All 0 if no patch fits into the foreground or into the ring.
///
/// rgb: [height, width, 3], rows contiguous, RGB. Returns [height * width], 0 on the background.
/// Time O(patches of the foreground * patches of the ring).
/// Source: Wang et al. 2025, Context-measure, arXiv 2512.07076; PySODMetrics, CamouflageContextMeasure.
class CamouflageDegree {
 public:
  static std::vector<double> of(const MapPair& pair, const uint8_t* rgb) {
    std::vector<double> degree(static_cast<std::size_t>(pair.size()), 0);
    const auto is_object = [&](int64_t pixel) { return pair.is_foreground(pixel); };
    const Counts objects(pair, is_object);
    const auto is_ring = [&](int64_t pixel) {
      const int64_t row = pixel / pair.width;
      const int64_t column = pixel % pair.width;
      return !is_object(pixel) && objects.in(row - kReach, column - kReach, row + kReach, column + kReach) > 0;
    };
    std::vector<Patch> wanted = patches(pair, rgb, objects);
    std::vector<Patch> offered = patches(pair, rgb, Counts(pair, is_ring));
    if (wanted.empty() || offered.empty()) {
      return degree;
    }
    standardise(wanted, offered);

    std::vector<std::array<int32_t, 3>> sums(degree.size());
    std::vector<int32_t> layers(degree.size(), 0);
    for (const Patch& patch : wanted) {
      const Patch& nearest = nearest_of(offered, patch);
      for (int64_t row = 0; row < kSide; ++row) {
        for (int64_t column = 0; column < kSide; ++column) {
          const int64_t pixel = (patch.row + row) * pair.width + patch.column + column;
          const int64_t source = (nearest.row + row) * pair.width + nearest.column + column;
          for (int64_t channel = 0; channel < 3; ++channel) {
            sums[pixel][channel] += rgb[3 * source + channel];
          }
          ++layers[pixel];
        }
      }
    }
    for (int64_t pixel = 0; pixel < pair.size(); ++pixel) {
      if (!is_object(pixel)) {
        continue;
      }
      Rgb painted{};
      for (int64_t channel = 0; channel < 3; ++channel) {
        const double mean = sums[pixel][channel] / (static_cast<double>(layers[pixel]) + kEpsilon);
        painted[channel] = static_cast<uint8_t>(std::nearbyint(mean));
      }
      const Rgb color{rgb[3 * pixel], rgb[3 * pixel + 1], rgb[3 * pixel + 2]};
      const double similarity = 1 - std::min(1.0, ciede2000(lab(painted), lab(color)) / 100);
      degree[pixel] = (std::exp(kSharpness * similarity) - 1) / (std::exp(kSharpness) - 1);
    }
    return degree;
  }

 private:
  static constexpr int64_t kSide = 7;
  static constexpr int64_t kStep = 3;
  static constexpr int64_t kReach = 10;
  static constexpr double kSharpness = 8;
  static constexpr double kCornerWeight = 20;
  // The values of a patch, filled up to whole registers.
  static constexpr std::size_t kValues = 160;

  struct Patch {
    int64_t row = 0;
    int64_t column = 0;
    std::array<uint8_t, kValues> lab{};
    std::array<float, 2> corner{};
  };

  /// How many pixels of a set lie in a rectangle, in O(1).
  class Counts {
   public:
    template <class Contains>
    Counts(const MapPair& pair, const Contains& contains)
        : height_(pair.height),
          width_(pair.width),
          sums_(static_cast<std::size_t>((height_ + 1) * (width_ + 1)), 0) {
      for (int64_t row = 0; row < height_; ++row) {
        int32_t in_row = 0;
        for (int64_t column = 0; column < width_; ++column) {
          in_row += contains(row * width_ + column) ? 1 : 0;
          sums_[(row + 1) * (width_ + 1) + column + 1] = sums_[row * (width_ + 1) + column + 1] + in_row;
        }
      }
    }

    /// Rows top ... bottom - 1, columns left ... right - 1, as far as they lie in the image.
    int32_t in(int64_t top, int64_t left, int64_t bottom, int64_t right) const {
      const auto sum = [&](int64_t row, int64_t column) {
        return sums_[std::clamp<int64_t>(row, 0, height_) * (width_ + 1) + std::clamp<int64_t>(column, 0, width_)];
      };
      return sum(bottom, right) - sum(top, right) - sum(bottom, left) + sum(top, left);
    }

   private:
    int64_t height_;
    int64_t width_;
    std::vector<int32_t> sums_;
  };

  /// The patches wholly in the counted set.
  static std::vector<Patch> patches(const MapPair& pair, const uint8_t* rgb, const Counts& counts) {
    std::vector<Patch> found;
    for (int64_t row = 0; row + kSide <= pair.height; row += kStep) {
      for (int64_t column = 0; column + kSide <= pair.width; column += kStep) {
        if (counts.in(row, column, row + kSide, column + kSide) < kSide * kSide) {
          continue;
        }
        Patch patch{row, column, {}, {}};
        auto value = patch.lab.begin();
        for (int64_t r = row; r < row + kSide; ++r) {
          for (int64_t c = column; c < column + kSide; ++c) {
            const uint8_t* const color = rgb + 3 * (r * pair.width + c);
            value = std::ranges::copy(lab_8bit({color[0], color[1], color[2]}), value).out;
          }
        }
        found.push_back(patch);
      }
    }
    return found;
  }

  /// Corners to mean 0 and standard deviation 20 over all patches, each axis by itself; constant ones to 0.
  static void standardise(std::vector<Patch>& wanted, std::vector<Patch>& offered) {
    const auto count = static_cast<double>(wanted.size() + offered.size());
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const auto position = [&](const Patch& patch) {
        return static_cast<double>(axis == 0 ? patch.row : patch.column);
      };
      const auto mean_of = [&](const auto& term) {
        double sum = 0;
        for (const auto* list : {&offered, &wanted}) {
          for (const Patch& patch : *list) {
            sum += term(position(patch));
          }
        }
        return sum / count;
      };
      const double mean = mean_of([](double x) { return x; });
      const double deviation = std::sqrt(mean_of([&](double x) { return (x - mean) * (x - mean); }));
      for (auto* list : {&offered, &wanted}) {
        for (Patch& patch : *list) {
          const double standard = (position(patch) - mean) / (deviation > 0 ? deviation : 1);
          patch.corner[axis] = static_cast<float>(kCornerWeight * standard);
        }
      }
    }
  }

  static const Patch& nearest_of(const std::vector<Patch>& offered, const Patch& patch) {
    const Patch* nearest = nullptr;
    double smallest = std::numeric_limits<double>::infinity();
    for (const Patch& other : offered) {
      double distance = 0;
      for (std::size_t axis = 0; axis < 2; ++axis) {
        const double offset = static_cast<double>(patch.corner[axis]) - static_cast<double>(other.corner[axis]);
        distance += offset * offset;
      }
      if (distance >= smallest) {
        continue;
      }
      int32_t in_color = 0;
      for (std::size_t i = 0; i < kValues; ++i) {
        const int32_t difference = int32_t{patch.lab[i]} - int32_t{other.lab[i]};
        in_color += difference * difference;
      }
      distance += in_color;
      if (distance < smallest) {
        smallest = distance;
        nearest = &other;
      }
    }
    return *nearest;
  }
};

}  // namespace moecod::metric
