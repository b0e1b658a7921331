#pragma once
#include "moecod/kernel/arguments.hpp"

/// Which outputs a sample of a map had a part in when the map was resampled, and with what weights: neighbours on either
/// side, so that a side is a band.
namespace moecod::kernel {

/// One side's band of one sample, as layers/band.hpp makes it: the first output, then the weights of `taps` outputs from
/// there on, of which some may be 0.
struct Band {
  const float* entry = nullptr;  ///< [1 + taps]
  int taps = 0;
  MOECOD_HOST_DEVICE int first() const { return static_cast<int>(entry[0]); }
  MOECOD_HOST_DEVICE float weight(int tap) const { return entry[1 + tap]; }
};

/// Lane `lane`'s share of sum over i, j of rows.weight(i) columns.weight(j) fetch(rows.first() + i, columns.first() + j), the
/// taps dealt out in turn; fetch is not called where the weight is 0.
template <class Fetch>
MOECOD_HOST_DEVICE float share_of_sum(const Band& rows, const Band& columns, int lane, int lanes, const Fetch& fetch) {
  const int top = rows.first(), left = columns.first();
  float sum = 0.0f;
  if (lanes == 1) {
    for (int i = 0; i < rows.taps; ++i) {
      const float row = rows.weight(i);
      if (row == 0.0f) continue;
      for (int j = 0; j < columns.taps; ++j) {
        const float weight = row * columns.weight(j);
        if (weight != 0.0f) sum += weight * fetch(top + i, left + j);
      }
    }
    return sum;
  }
  const int down = lanes / columns.taps, along = lanes % columns.taps;
  int i = lane / columns.taps, j = lane % columns.taps;
  for (int tap = lane; tap < rows.taps * columns.taps; tap += lanes) {
    const float weight = rows.weight(i) * columns.weight(j);
    if (weight != 0.0f) sum += weight * fetch(top + i, left + j);
    i += down;
    j += along;
    if (j >= columns.taps) {
      j -= columns.taps;
      ++i;
    }
  }
  return sum;
}

}  // namespace moecod::kernel
