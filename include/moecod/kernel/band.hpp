#pragma once
#include "moecod/kernel/arguments.hpp"

/// Which samples of one map a sample of another is a sum of, and with what weights: neighbours on either side, so that a
/// side is a band.
namespace moecod::kernel {

/// One side's band of one sample, a column of what layers/band.hpp makes: the first place, then the weights of `taps` places
/// from there on, of which some may be 0. Neighbouring samples' entries lie side by side.
struct Band {
  const float* column = nullptr;  ///< of [1 + taps, samples]
  int samples = 1, taps = 0;
  MOECOD_HOST_DEVICE int first() const { return static_cast<int>(column[0]); }
  MOECOD_HOST_DEVICE float weight(int tap) const { return column[(1 + tap) * samples]; }
};

/// Lane `lane`'s share of the taps, dealt out in turn: calls add(rows.weight(i) columns.weight(j), rows.first() + i,
/// columns.first() + j) where the weight is not 0.
template <class Add>
MOECOD_HOST_DEVICE void share_of_taps(const Band& rows, const Band& columns, int lane, int lanes, const Add& add) {
  const int top = rows.first(), left = columns.first();
  if (lanes == 1) {
    for (int i = 0; i < rows.taps; ++i) {
      const float row = rows.weight(i);
      if (row == 0.0f) continue;
      for (int j = 0; j < columns.taps; ++j) {
        const float weight = row * columns.weight(j);
        if (weight != 0.0f) add(weight, top + i, left + j);
      }
    }
    return;
  }
  const int down = lanes / columns.taps, along = lanes % columns.taps;
  int i = lane / columns.taps, j = lane % columns.taps;
  for (int tap = lane; tap < rows.taps * columns.taps; tap += lanes) {
    const float weight = rows.weight(i) * columns.weight(j);
    if (weight != 0.0f) add(weight, top + i, left + j);
    i += down;
    j += along;
    if (j >= columns.taps) {
      j -= columns.taps;
      ++i;
    }
  }
}

/// The same of all of 2 x 2 taps, as a map made larger by bilinear interpolation has them: without loops.
template <class Add>
MOECOD_HOST_DEVICE void two_by_two_taps(const Band& rows, const Band& columns, const Add& add) {
  const int top = rows.first(), left = columns.first();
  const float up = rows.weight(0), down = rows.weight(1), near = columns.weight(0), far = columns.weight(1);
  const auto tap = [&](float weight, int i, int j) {
    if (weight != 0.0f) add(weight, i, j);  // what a sample has no part of may be infinite
  };
  tap(up * near, top, left);
  tap(up * far, top, left + 1);
  tap(down * near, top + 1, left);
  tap(down * far, top + 1, left + 1);
}

}  // namespace moecod::kernel
