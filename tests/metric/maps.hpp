#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <moecod/metric/map_pair.hpp>

namespace moecod::metric::test {

/// A prediction and a truth that own their pixels.
struct Maps {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<uint8_t> prediction;
  std::vector<uint8_t> truth;

  MapPair pair() const { return {prediction.data(), truth.data(), height, width}; }

  Maps transposed() const {
    Maps out{width, height, prediction, truth};
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        out.prediction[column * height + row] = prediction[row * width + column];
        out.truth[column * height + row] = truth[row * width + column];
      }
    }
    return out;
  }
};

inline Maps constant_maps(int64_t height, int64_t width, uint8_t prediction, uint8_t truth) {
  const auto size = static_cast<std::size_t>(height * width);
  return {height, width, std::vector<uint8_t>(size, prediction), std::vector<uint8_t>(size, truth)};
}

/// Noise in the prediction; a truth of which about one pixel in `sparsity` is foreground, at least one and not all.
inline Maps random_maps(std::mt19937& random, int64_t height, int64_t width, int sparsity) {
  Maps maps = constant_maps(height, width, 0, 0);
  for (std::size_t pixel = 0; pixel < maps.truth.size(); ++pixel) {
    maps.prediction[pixel] = static_cast<uint8_t>(random());
    maps.truth[pixel] = random() % static_cast<unsigned>(sparsity) == 0 ? 255 : 0;
  }
  maps.truth.front() = 255;
  maps.truth.back() = 0;
  return maps;
}

inline std::vector<Maps> random_set(unsigned seed, int count) {
  std::mt19937 random(seed);
  std::vector<Maps> set;
  for (int i = 0; i < count; ++i) {
    const auto height = static_cast<int64_t>(2 + random() % 30);
    const auto width = static_cast<int64_t>(2 + random() % 30);
    set.push_back(random_maps(random, height, width, 2 + i % 9));
  }
  return set;
}

}  // namespace moecod::metric::test
