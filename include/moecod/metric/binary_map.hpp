#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moecod::metric {

/// A set of pixels of an image, with the operations that the measures of outlines need.
class BinaryMap {
 public:
  BinaryMap(int64_t height, int64_t width)
      : height_(height), width_(width), pixels_(static_cast<std::size_t>(height * width), 0) {}

  /// The pixels for which contains(pixel) is true.
  template <class Contains>
  BinaryMap(int64_t height, int64_t width, const Contains& contains) : BinaryMap(height, width) {
    for (int64_t pixel = 0; pixel < size(); ++pixel) {
      pixels_[pixel] = contains(pixel) ? 1 : 0;
    }
  }

  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  int64_t size() const { return height_ * width_; }

  bool operator[](int64_t pixel) const { return pixels_[pixel] != 0; }
  void set(int64_t pixel, bool value) { pixels_[pixel] = value ? 1 : 0; }

  /// Whether (row, column) is in the set; false outside the image.
  bool at(int64_t row, int64_t column) const {
    return row >= 0 && row < height_ && column >= 0 && column < width_ && pixels_[row * width_ + column] != 0;
  }

  /// The set and its neighbours by edges.
  BinaryMap dilated() const {
    return of_neighbours([](int inside, int) { return inside > 0; });
  }

  /// The set without what has a neighbour by an edge outside it. Beyond the image there is nothing: it does not erode.
  BinaryMap eroded() const {
    return of_neighbours([](int inside, int present) { return inside == present; });
  }

  friend bool operator==(const BinaryMap&, const BinaryMap&) = default;

 private:
  /// decide(how many of the pixel and its 4 neighbours are in the set, how many are in the image), for every pixel.
  template <class Decide>
  BinaryMap of_neighbours(const Decide& decide) const {
    BinaryMap out(height_, width_);
    for (int64_t row = 0; row < height_; ++row) {
      for (int64_t column = 0; column < width_; ++column) {
        const int64_t pixel = row * width_ + column;
        int inside = pixels_[pixel];
        int present = 1;
        const auto look = [&](bool is_present, int64_t neighbour) {
          if (is_present) {
            inside += pixels_[neighbour];
            ++present;
          }
        };
        look(row > 0, pixel - width_);
        look(row + 1 < height_, pixel + width_);
        look(column > 0, pixel - 1);
        look(column + 1 < width_, pixel + 1);
        out.pixels_[pixel] = decide(inside, present) ? 1 : 0;
      }
    }
    return out;
  }

  int64_t height_;
  int64_t width_;
  std::vector<uint8_t> pixels_;
};

}  // namespace moecod::metric
