#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <stdexcept>
#include <string>

#include "moecod/core/options.hpp"

namespace moecod::train {

/// The learning rate as a pure function of the step, so a resumed run needs no state for it.
///
/// With peak p, floor f, W warm-up steps of T, and s = 0 ... T - 1 the step:
///     warm-up         s < W:  f + (p - f) (s + 1) / W     (peak on the last of these steps)
///     None            p
///     Cosine          f + (p - f) (1 + cos(pi u)) / 2,  u = (s - W) / (T - 1 - W): p first, f last
///     OneCycle        as Cosine after W warm-up steps, which rise along a cosine from p / 25 and are 30 % of T if W is
///                     0 (Smith and Topin 2018, arXiv 1708.07120)
///     CosineRestart   `cycles` cosines from p to f one after another, each twice as long as the one before (SGDR,
///                     Loshchilov and Hutter 2017, arXiv 1608.03983)
/// Steps past the end have the rate of the last one. Needs no LibTorch.
struct Schedule {
  enum class Shape { None, Cosine, OneCycle, CosineRestart };
  /// Words for `Shape`, for option().
  static constexpr auto shapes = choices("none", "cosine", "onecycle", "cosine_restart");

  Shape shape = Shape::Cosine;
  double peak = 1e-3;
  double floor = 1e-6;
  int64_t warmup_steps = 0;  ///< W
  int64_t total_steps = 1;   ///< T
  int64_t cycles = 3;        ///< CosineRestart only

  /// Errors: std::invalid_argument for a negative step or for members that make no schedule.
  double operator()(int64_t step) const {
    check(step);
    step = std::min(step, total_steps - 1);
    int64_t rise = warmup_steps;
    if (shape == Shape::OneCycle && rise == 0) rise = total_steps * 3 / 10;
    if (step < rise) {
      const double share = static_cast<double>(step + 1) / static_cast<double>(rise);
      return shape == Shape::OneCycle ? fall(1 - share, peak / 25) : floor + (peak - floor) * share;
    }
    const int64_t length = total_steps - rise, after = step - rise;
    if (shape == Shape::None) return peak;
    return shape == Shape::CosineRestart ? restarted(after, length) : cosine(after, length);
  }

 private:
  double fall(double share, double low) const {
    return low + (peak - low) * 0.5 * (1 + std::cos(std::numbers::pi * share));
  }

  double cosine(int64_t step, int64_t length) const {
    return fall(length > 1 ? static_cast<double>(step) / static_cast<double>(length - 1) : 0.0, floor);
  }

  /// Cycle c begins at length (2^c - 1) / (2^cycles - 1), rounded down, so the last one ends with the schedule.
  double restarted(int64_t step, int64_t length) const {
    const int64_t units = (int64_t{1} << cycles) - 1;
    const auto begin = [&](int64_t cycle) { return length * ((int64_t{1} << cycle) - 1) / units; };
    int64_t cycle = 0;
    while (cycle + 1 < cycles && begin(cycle + 1) <= step) ++cycle;
    return cosine(step - begin(cycle), begin(cycle + 1) - begin(cycle));
  }

  void check(int64_t step) const {
    const auto require = [](bool holds, const std::string& what) {
      if (!holds) throw std::invalid_argument("Schedule: " + what);
    };
    require(step >= 0, "the step must not be negative, got " + std::to_string(step));
    require(total_steps >= 1, "total_steps must be at least 1, got " + std::to_string(total_steps));
    require(warmup_steps >= 0 && warmup_steps <= total_steps,
            "warmup_steps must be in [0, " + std::to_string(total_steps) + "], got " + std::to_string(warmup_steps));
    require(cycles >= 1 && cycles <= 30, "cycles must be in [1, 30], got " + std::to_string(cycles));
    require(peak >= floor && floor >= 0, "0 <= floor <= peak must hold, got floor " + std::to_string(floor) +
                                             " and peak " + std::to_string(peak));
  }
};

}  // namespace moecod::train
