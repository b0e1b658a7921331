#pragma once
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "moecod/io/image.hpp"

namespace moecod::post {

/// A point of a feature space in which one unit is one standard deviation of the kernel.
template <std::size_t D>
using Feature = std::array<double, D>;

/// A Gaussian filter over N points: (K v)_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j, point i itself included.
/// `apply` takes and gives N values and is linear.
template <class T>
concept gaussian_filter = requires(const T& filter, const std::vector<double>& values) {
  { filter.size() } -> std::convertible_to<std::size_t>;
  { filter.apply(values) } -> std::same_as<std::vector<double>>;
};

/// A filter made from points.
template <class T>
concept bilateral_filter = gaussian_filter<T> && std::constructible_from<T, std::vector<Feature<5>>>;

/// One point a pixel: (x / sxy, y / sxy, r / srgb, g / srgb, b / srgb), x and y from the picture's centre.
/// Errors: std::invalid_argument unless the picture has 3 channels and both deviations are positive.
inline std::vector<Feature<5>> bilateral_features(const Image& rgb, double sxy, double srgb) {
  if (rgb.channels != 3)
    throw std::invalid_argument("bilateral_features: expected an RGB picture, got " + std::to_string(rgb.channels) +
                                " channels");
  if (!(sxy > 0) || !(srgb > 0))
    throw std::invalid_argument("bilateral_features: sxy and srgb must be positive, got " + std::to_string(sxy) +
                                " and " + std::to_string(srgb));
  std::vector<Feature<5>> out;
  out.reserve(std::size_t(rgb.height * rgb.width));
  for (int64_t y = 0; y < rgb.height; ++y)
    for (int64_t x = 0; x < rgb.width; ++x)
      out.push_back({(double(x) - 0.5 * double(rgb.width - 1)) / sxy, (double(y) - 0.5 * double(rgb.height - 1)) / sxy,
                     rgb.at(y, x, 0) / srgb, rgb.at(y, x, 1) / srgb, rgb.at(y, x, 2) / srgb});
  return out;
}

namespace detail {

inline void check_values(const char* filter, std::size_t points, std::size_t values) {
  if (points != values)
    throw std::invalid_argument(std::string(filter) + ": expected " + std::to_string(points) + " values, got " +
                                std::to_string(values));
}

}  // namespace detail

}  // namespace moecod::post
