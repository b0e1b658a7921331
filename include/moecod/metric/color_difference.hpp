#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include <moecod/metric/lab_color.hpp>

namespace moecod::metric {

/// CIEDE2000 difference of two colours, with all parametric factors 1. About 1 where the eye just sees it, at most
/// some 100.
///
/// With a' = a (1 + G), G = (1 - sqrt(C^7 / (C^7 + 25^7))) / 2 of the mean chroma C, and chroma C', hue h' of (a', b):
///     dE^2 = (dL / S_L)^2 + (dC' / S_C)^2 + (dH' / S_H)^2 + R_T (dC' / S_C)(dH' / S_H),    dE^2 < 0 counting as 0.
/// Source: Sharma, Wu and Dalal, The CIEDE2000 color-difference formula, Color Research and Application, 2005.
inline double ciede2000(const Lab& first, const Lab& second) {
  constexpr double kPi = std::numbers::pi;
  constexpr double kDegree = kPi / 180;
  const auto saturation = [](double chroma) {
    const double seventh = std::pow(chroma, 7);
    return std::sqrt(seventh / (seventh + 6103515625.0));  // 25^7
  };
  const double stretch =
      1 + 0.5 * (1 - saturation(0.5 * (std::hypot(first.a, first.b) + std::hypot(second.a, second.b))));
  const auto hue_of = [&](const Lab& color) {
    const double hue = std::atan2(color.b, color.a * stretch);
    return hue < 0 ? hue + 2 * kPi : hue;
  };
  const double chroma_1 = std::hypot(first.a * stretch, first.b);
  const double chroma_2 = std::hypot(second.a * stretch, second.b);
  const double hue_1 = hue_of(first);
  const double hue_2 = hue_of(second);
  const bool has_hue = chroma_1 * chroma_2 != 0;

  // Hues are compared the short way round; a grey has none.
  double turn = hue_2 - hue_1;
  double hue = 0.5 * (hue_1 + hue_2);
  if (!has_hue) {
    turn = 0;
    hue = hue_1 + hue_2;
  } else if (std::abs(turn) > kPi) {
    turn += turn > 0 ? -2 * kPi : 2 * kPi;
    hue += hue < kPi ? kPi : -kPi;
  }

  const double lightness = 0.5 * (first.l + second.l) - 50;
  const double chroma = 0.5 * (chroma_1 + chroma_2);
  const double t = 1 - 0.17 * std::cos(hue - 30 * kDegree) + 0.24 * std::cos(2 * hue) +
                   0.32 * std::cos(3 * hue + 6 * kDegree) - 0.20 * std::cos(4 * hue - 63 * kDegree);
  const double by_lightness =
      (second.l - first.l) / (1 + 0.015 * lightness * lightness / std::sqrt(20 + lightness * lightness));
  const double by_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * chroma);
  const double by_hue = 2 * std::sqrt(chroma_1 * chroma_2) * std::sin(turn / 2) / (1 + 0.015 * chroma * t);
  const double from_blue = (hue / kDegree - 275) / 25;
  const double rotation = -std::sin(60 * kDegree * std::exp(-from_blue * from_blue)) * 2 * saturation(chroma);
  return std::sqrt(std::max(0.0, by_lightness * by_lightness + by_chroma * by_chroma + by_hue * by_hue +
                                     rotation * by_chroma * by_hue));
}

}  // namespace moecod::metric
