#pragma once
#include <algorithm>
#include <cmath>
#include <tuple>

#include "moecod/core/options.hpp"
#include "moecod/post/filter/permutohedral.hpp"
#include "moecod/post/filter/separable.hpp"
#include "moecod/post/filter/symmetric.hpp"
#include "moecod/post/mean_field.hpp"

namespace moecod::post {

/// The dense random field's parameters; the defaults are those of saliency programs. Positions are in pixels of the
/// picture given, colours in 0 to 255.
struct CrfOptions {
  int64_t iterations = 1;
  double tau = 1.05;
  double smooth_sxy = 3, smooth_compat = 3;
  double sxy = 60, srgb = 5, compat = 5;

  static constexpr auto options = std::make_tuple(
      option(&CrfOptions::iterations, "crf-iterations", "mean-field iterations", between(0, 1000)),
      option(&CrfOptions::tau, "crf-tau", "divides the map's own evidence", above(0)),
      option(&CrfOptions::smooth_sxy, "crf-smooth-sxy", "deviation of the smoothness kernel, pixels", above(0)),
      option(&CrfOptions::smooth_compat, "crf-smooth-compat", "weight of the smoothness kernel", at_least(0)),
      option(&CrfOptions::sxy, "crf-sxy", "deviation of the appearance kernel, pixels", above(0)),
      option(&CrfOptions::srgb, "crf-srgb", "deviation of the appearance kernel, colour values of 255", above(0)),
      option(&CrfOptions::compat, "crf-compat", "weight of the appearance kernel", at_least(0)));
};

/// The evidence of a map of probabilities, as log-odds u = U_bg - U_fg with
///
///     U_bg = -ln(1 - p + 1e-8) / (tau sigmoid(1 - p)),   U_fg = -ln(p + 1e-8) / (tau sigmoid(p)).
///
/// p [N] -> u [N]. Errors: std::invalid_argument for a p outside [0, 1].
inline std::vector<double> crf_unary(const std::vector<double>& probabilities, double tau = CrfOptions().tau) {
  const auto energy = [tau](double p) { return -std::log(p + 1e-8) / tau * (1.0 + std::exp(-p)); };
  std::vector<double> out;
  out.reserve(probabilities.size());
  for (const double p : probabilities) {
    if (!(p >= 0 && p <= 1))
      throw std::invalid_argument("crf: probabilities must be in [0, 1], got " + std::to_string(p));
    out.push_back(energy(1 - p) - energy(p));
  }
  return out;
}

/// Sharpens a map of probabilities along the edges of its picture: a dense random field with a smoothness kernel over
/// positions and an appearance kernel over positions and colours, both normalised symmetrically.
///
///     k_smooth = exp(-|p_i - p_j|^2 / (2 smooth_sxy^2))
///     k_appear = exp(-|p_i - p_j|^2 / (2 sxy^2) - |c_i - c_j|^2 / (2 srgb^2))
///
/// rgb [H, W, 3]; probabilities [H * W] by rows, in [0, 1]; gives the foreground's [H * W]. The smoothness kernel is
/// exact. The appearance kernel is filtered by `Bilateral`: filter::Permutohedral approximates it in time O(H W);
/// filter::Pairwise is exact in O((H W)^2). A kernel of weight 0 is not made. One thread; needs no LibTorch.
///
/// Errors: std::invalid_argument for another number of probabilities than pixels, values outside [0, 1], or options out
/// of range.
/// Source: Kraehenbuehl and Koltun 2011, arXiv 1210.5644; evidence and parameters as saliency programs use them.
template <bilateral_filter Bilateral = filter::Permutohedral<5>>
std::vector<double> crf(const Image& rgb, const std::vector<double>& probabilities, const CrfOptions& options = {}) {
  check_options(options);
  if (rgb.empty() || rgb.channels != 3 || probabilities.size() != std::size_t(rgb.height * rgb.width))
    throw std::invalid_argument("crf: expected an RGB picture and one probability a pixel, got " +
                                std::to_string(rgb.height) + " x " + std::to_string(rgb.width) + " x " +
                                std::to_string(rgb.channels) + " and " + std::to_string(probabilities.size()));
  const std::vector<double> unary = crf_unary(probabilities, options.tau);
  const bool any = options.iterations > 0;
  const auto smooth = [&] {
    return Term{options.smooth_compat,
                    filter::Symmetric(filter::Separable(rgb.height, rgb.width, options.smooth_sxy))};
  };
  const auto appear = [&] {
    return Term{options.compat, filter::Symmetric(Bilateral(bilateral_features(rgb, options.sxy, options.srgb)))};
  };
  if (any && options.smooth_compat > 0 && options.compat > 0)
    return mean_field(unary, options.iterations, smooth(), appear());
  if (any && options.smooth_compat > 0) return mean_field(unary, options.iterations, smooth());
  if (any && options.compat > 0) return mean_field(unary, options.iterations, appear());
  return mean_field(unary, 0);
}

/// The same for a map in memory: grey, 0 to 255, of the picture's size; rounded to the nearest.
/// Errors: std::invalid_argument for a map of another size or not grey; as above.
template <bilateral_filter Bilateral = filter::Permutohedral<5>>
Image crf(const Image& rgb, const Image& map, const CrfOptions& options = {}) {
  if (map.channels != 1 || map.height != rgb.height || map.width != rgb.width)
    throw std::invalid_argument("crf: the map must be grey and of the picture's size " + std::to_string(rgb.height) +
                                " x " + std::to_string(rgb.width) + ", got " + std::to_string(map.height) + " x " +
                                std::to_string(map.width) + " x " + std::to_string(map.channels));
  std::vector<double> probabilities;
  probabilities.reserve(map.pixels.size());
  for (const uint8_t value : map.pixels) probabilities.push_back(value / 255.0);
  const std::vector<double> q = crf<Bilateral>(rgb, probabilities, options);
  Image out(map.height, map.width, 1);
  std::transform(q.begin(), q.end(), out.pixels.begin(), [](double p) { return uint8_t(std::lround(255 * p)); });
  return out;
}

}  // namespace moecod::post
