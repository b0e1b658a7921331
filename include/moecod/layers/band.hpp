#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

namespace moecod::layers::detail {

/// The columns of a matrix [out, in] whose entries other than 0 are neighbours in each column, as float32
/// [1 + taps, in]: the first row of such entries, then the entries from there on (kernel/band.hpp). first + taps is at most
/// `out` in every column.
inline at::Tensor band_of(const at::Tensor& matrix) {
  const auto m = matrix.accessor<double, 2>();
  const int64_t out = m.size(0), in = m.size(1);
  std::vector<int64_t> first(std::size_t(in), 0);
  int64_t taps = 1;
  for (int64_t y = 0; y < in; ++y) {
    int64_t begin = 0, end = out;
    while (begin < out && m[begin][y] == 0) ++begin;
    while (end > begin && m[end - 1][y] == 0) --end;
    first[std::size_t(y)] = begin;
    taps = std::max(taps, end - begin);
  }
  at::Tensor band = at::zeros({1 + taps, in}, at::kFloat);
  auto b = band.accessor<float, 2>();
  for (int64_t y = 0; y < in; ++y) {
    const int64_t begin = std::min(first[std::size_t(y)], out - taps);
    b[0][y] = static_cast<float>(begin);
    for (int64_t k = 0; k < taps; ++k) b[1 + k][y] = static_cast<float>(m[begin + k][y]);
  }
  return band;
}

}  // namespace moecod::layers::detail
