#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace moecod::metric {

/// An sRGB colour, 8 bits a channel.
using Rgb = std::array<uint8_t, 3>;

/// A colour in CIE L*a*b* (D65).
struct Lab {
  double l = 0;
  double a = 0;
  double b = 0;
};

namespace detail {

/// Linear light of an sRGB value in [0, 1].
inline double linear_light(double value) {
  return value <= 0.04045 ? value / 12.92 : std::pow((value + 0.055) / 1.055, 2.4);
}

/// From linear RGB to XYZ.
inline constexpr double kXyzOfRgb[3][3] = {
    {0.412453, 0.357580, 0.180423}, {0.212671, 0.715160, 0.072169}, {0.019334, 0.119193, 0.950227}};

}  // namespace detail

/// L*a*b* in float64: X, Y, Z relative to the white (0.95047, 1, 1.08883), through the cube root above 0.008856 and
/// 7.787 t + 16/116 below. L* in [0, 100]. Source: CIE 1976; constants as in scikit-image, rgb2lab.
inline Lab lab(const Rgb& color) {
  static const std::array<double, 256> light = [] {
    std::array<double, 256> table{};
    for (int value = 0; value < 256; ++value) {
      table[value] = detail::linear_light(value / 255.0);
    }
    return table;
  }();
  constexpr std::array<double, 3> kWhite{0.95047, 1.0, 1.08883};
  std::array<double, 3> f{};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& row = detail::kXyzOfRgb[i];
    const double t = (row[0] * light[color[0]] + row[1] * light[color[1]] + row[2] * light[color[2]]) / kWhite[i];
    f[i] = t > 0.008856 ? std::cbrt(t) : 7.787 * t + 16.0 / 116.0;
  }
  return {116.0 * f[1] - 16.0, 500.0 * (f[0] - f[1]), 200.0 * (f[1] - f[2])};
}

/// L*a*b* in 8 bits a channel, 255/100 L*, a* + 128, b* + 128, in the fixed-point arithmetic of OpenCV's cvtColor:
/// equal to it for each of the 2^24 colours. The white is (0.950456, 1, 1.088754).
inline Rgb lab_8bit(const Rgb& color) {
  // Light in 1/(255 * 8), its cube root and 16/116 + 841/108 t in 1/2^15, the matrix in 1/2^12.
  constexpr int kLightSteps = 255 * 8;
  constexpr int kMatrixBits = 12;
  constexpr int kRootBits = 15;
  static const std::array<int, 256> light = [] {
    std::array<int, 256> table{};
    for (int value = 0; value < 256; ++value) {
      table[value] = static_cast<int>(std::nearbyint(kLightSteps * detail::linear_light(value / 255.0)));
    }
    return table;
  }();
  static const std::array<int, 3072> root = [] {
    std::array<int, 3072> table{};
    for (int step = 0; step < 3072; ++step) {
      const double t = static_cast<double>(step) / kLightSteps;
      const double f = t < 216.0 / 24389 ? 841.0 / 108 * t + 16.0 / 116 : std::cbrt(t);
      table[step] = static_cast<int>(std::nearbyint((1 << kRootBits) * f));
    }
    // OpenCV fills the table in float32, which moves three entries over a half.
    table[49] = 9454;
    table[628] = 22126;
    table[2079] = 32976;
    return table;
  }();
  static const std::array<std::array<int, 3>, 3> matrix = [] {
    constexpr std::array<double, 3> kWhite{0.950456, 1.0, 1.088754};
    std::array<std::array<int, 3>, 3> rows{};
    for (std::size_t i = 0; i < 3; ++i) {
      for (std::size_t j = 0; j < 3; ++j) {
        rows[i][j] = static_cast<int>(std::nearbyint((1 << kMatrixBits) * detail::kXyzOfRgb[i][j] / kWhite[i]));
      }
    }
    return rows;
  }();
  const auto rounded_shift = [](int value, int bits) { return (value + (1 << (bits - 1))) >> bits; };
  std::array<int, 3> f{};
  for (std::size_t i = 0; i < 3; ++i) {
    const int t = matrix[i][0] * light[color[0]] + matrix[i][1] * light[color[1]] + matrix[i][2] * light[color[2]];
    f[i] = root[static_cast<std::size_t>(rounded_shift(t, kMatrixBits))];
  }
  constexpr int kLightnessFactor = (116 * 255 + 50) / 100;
  constexpr int kLightnessShift = (16 * 255 * (1 << kRootBits) + 50) / 100;
  constexpr int kMiddle = 128 * (1 << kRootBits);
  const auto clamped = [](int value) { return static_cast<uint8_t>(std::clamp(value, 0, 255)); };
  return {clamped(rounded_shift(kLightnessFactor * f[1] - kLightnessShift, kRootBits)),
          clamped(rounded_shift(500 * (f[0] - f[1]) + kMiddle, kRootBits)),
          clamped(rounded_shift(200 * (f[1] - f[2]) + kMiddle, kRootBits))};
}

}  // namespace moecod::metric
