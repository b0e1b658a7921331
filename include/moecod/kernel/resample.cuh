#pragma once
#include <utility>

#include "moecod/kernel/band.hpp"
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/rows.cuh"

/// Resampled maps, forward and backward: each sample of the result fetches what it is made of and adds in a fixed order.
/// (LibTorch's backward kernels let each gradient add to its inputs with atomics.)
///
///     y[i, j] = sum over r, c of weight(r, i) weight(c, j) x[r, c]
/// over the rows r and columns c that sample (i, j) is made of (band.hpp). The part in an average or a bilinear mean is a
/// product of two weights; in a maximum's gradient it is 1 where the element's index names the sample. Threads take vectors of
/// channels where these lie side by side; a sample of many parts is shared by several lanes. Bytes: x in once
/// (overlapping windows meet in the caches), y out.
namespace moecod::kernel {

namespace detail {

struct ResampleTuning {
  static constexpr int threads = 256;
  static constexpr int taps_of_a_lane = 36;  // above it, more lanes share a sample
  static constexpr int most_blocks = 8192;   // along rows; starting more costs more than their work
};

/// Threads: a row's vectors, each of which `lanes` share, or `Columns` pixels of one channel; several rows of y, and then
/// those a grid further. Grid: rows; blocks of a row's vectors.
enum class Taps { any, two_by_two, indexed };

template <class T, int V, int Columns, Taps Kind>
__global__ void __launch_bounds__(ResampleTuning::threads) resample(const Resample a, int lanes) {
  using Vector = Pack<T, V>;
  const int vectors = a.channels / V, lane = threadIdx.x & (lanes - 1);
  const int item = (blockIdx.y * blockDim.x + threadIdx.x) / lanes;
  const int pixel = vectors == 1 ? item : item / vectors, v = item - pixel * vectors, first = Columns * pixel;
  const bool live = first < a.out_width;  // all lanes stay for the shuffles
  const auto lines = static_cast<int>(a.images * a.out_height);
  for (int line = blockIdx.x * blockDim.y + threadIdx.y; line < lines; line += gridDim.x * blockDim.y) {
    const int image = line / a.out_height, row = line - image * a.out_height;
    const Vector* x = static_cast<const Vector*>(a.x) + int64_t(image) * a.height * a.width * vectors + v;
    const int64_t* index = Kind == Taps::indexed ? a.index + (int64_t(image) * a.height * a.width * vectors + v) * V : nullptr;
    float sum[Columns * V] = {};
    if (live) {
#pragma unroll
      for (int i = 0; i < Columns; ++i) {
        const int column = first + i;
        const Band down{a.rows + row, a.out_height, a.row_taps}, along{a.columns + column, a.out_width, a.column_taps};
        const auto add = [&](float weight, int r, int c) {
          const int from = (r * a.width + c) * vectors;
          const Vector in = x[from];
          if constexpr (Kind == Taps::indexed) {
            const int64_t here = row * a.out_width + column;
            in.read([&](int k, float value) {
              if (index[int64_t(from) * V + k] == here) sum[i * V + k] += value;
            });
          } else {
            in.read([&](int k, float value) { sum[i * V + k] = fmaf(weight, value, sum[i * V + k]); });
          }
        };
        if constexpr (Kind == Taps::two_by_two) {
          two_by_two_taps(down, along, add);
        } else {
          share_of_taps(down, along, lane, lanes, add);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < Columns * V; ++k) sum[k] = sum_of_lanes(sum[k], lanes);
    if (!live || lane > 0) continue;
    Pack<T, Columns * V> out;
    out.write([&](int k) { return sum[k]; });
    *reinterpret_cast<Pack<T, Columns * V>*>(static_cast<Vector*>(a.y) + (int64_t(line) * a.out_width + first) * vectors + v) =
        out;
  }
}

}  // namespace detail

/// One launch.
inline cudaError_t resample(const Resample& a, cudaStream_t stream) {
  int lanes = 1;
  while (lanes < 32 && a.row_taps * a.column_taps > detail::ResampleTuning::taps_of_a_lane * lanes) lanes *= 2;
  return detail::with_type(a.type, [&]<class T>(T) {
    const auto launch = [&]<int V, int Columns>(std::integer_sequence<int, V, Columns>) {
      const int64_t rows = a.images * a.out_height, items = int64_t(a.out_width / Columns) * (a.channels / V) * lanes;
      if (rows == 0 || items == 0) return cudaSuccess;
      constexpr int all = detail::ResampleTuning::threads;
      const int along = items < all ? static_cast<int>((items + 31) / 32 * 32) : all, down = all / along;
      const int64_t blocks = (rows + down - 1) / down, most = detail::ResampleTuning::most_blocks;
      const dim3 threads(along, down), grid(static_cast<unsigned>(blocks < most ? blocks : most),
                                            static_cast<unsigned>((items + along - 1) / along));
      using detail::Taps;
      const auto kernel = a.index                                 ? detail::resample<T, V, Columns, Taps::indexed>
                          : a.row_taps == 2 && a.column_taps == 2 ? detail::resample<T, V, Columns, Taps::two_by_two>
                                                                  : detail::resample<T, V, Columns, Taps::any>;
      kernel<<<grid, threads, 0, stream>>>(a, lanes);
      return cudaGetLastError();
    };
    constexpr int wide = 16 / sizeof(T);
    if (a.channels % wide == 0 && detail::vectors_fit(0, 16, a.x, a.y)) return launch(std::integer_sequence<int, wide, 1>{});
    if (a.channels == 1 && lanes == 1 && a.out_width % 4 == 0 && detail::vectors_fit(0, 16, a.y))
      return launch(std::integer_sequence<int, 1, 4>{});
    return launch(std::integer_sequence<int, 1, 1>{});
  });
}

}  // namespace moecod::kernel
