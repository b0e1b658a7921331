#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/columns.cuh"

/// Depthwise convolution of images sorted by expert, stride 1: each channel with its expert's filter for it.
///
///     y[n, i, j, c] = bias[e, c] + sum over a, b of x[n, i - p + d a, j - p + d b, c] w[e, a, b, c],   e the expert of n
/// The data gradient is the same with p - d a for -p + d a. The weights' gradient is summed over pieces of one expert's
/// positions, and these in their order: no atomics. A thread takes a vector of channels, so x is read taps times, from the
/// caches. Bytes: forward x in, y out; weights' gradient x and grad in for each row of the filter.
namespace moecod::kernel {

namespace detail {

struct DepthwiseTuning {
  static constexpr int threads = 256;
  static constexpr int lanes = 32;  // vectors of channels that a block of the weights' gradient takes, at most
  static constexpr int piece = column_sums_piece;
};

template <class T, int V>
__global__ void __launch_bounds__(DepthwiseTuning::threads) depthwise(const Depthwise a, int total) {
  using Vector = Pack<T, V>;
  const ConvShape& s = a.shape;
  const int index = blockIdx.x * DepthwiseTuning::threads + threadIdx.x;
  if (index >= total) return;
  const int in_height = a.transposed ? s.out_height() : s.height, in_width = a.transposed ? s.out_width() : s.width;
  const int height = a.transposed ? s.height : s.out_height(), width = a.transposed ? s.width : s.out_width();
  const int vectors = s.in / V, v = index % vectors, item = index / vectors;
  const int column = item % width, row = item / width % height, image = item / width / height;
  const int sign = a.transposed ? -1 : 1, top = row - sign * s.padding[0], left = column - sign * s.padding[1];
  const int expert = expert_of(a.groups.offsets, a.groups.experts, image);
  const Vector* x = static_cast<const Vector*>(a.x);
  const Vector* weight = static_cast<const Vector*>(a.weight) + int64_t(expert) * s.taps() * vectors + v;
  float sum[V] = {};
  if (a.bias)
    static_cast<const Vector*>(a.bias)[int64_t(expert) * vectors + v].read([&](int c, float value) { sum[c] = value; });
  for (int ky = 0; ky < s.kernel[0]; ++ky) {
    const int from_row = top + sign * ky * s.dilation[0];
    if (from_row < 0 || from_row >= in_height) continue;
    const Vector* line = x + (int64_t(image) * in_height + from_row) * in_width * vectors + v;
    for (int kx = 0; kx < s.kernel[1]; ++kx) {
      const int from = left + sign * kx * s.dilation[1];
      if (from < 0 || from >= in_width) continue;
      const Vector in = line[int64_t(from) * vectors], w = weight[(ky * s.kernel[1] + kx) * vectors];
      float filter[V];
      w.read([&](int c, float value) { filter[c] = value; });
      in.read([&](int c, float value) { sum[c] = fmaf(value, filter[c], sum[c]); });
    }
  }
  Vector out;
  out.write([&](int c) { return sum[c]; });
  static_cast<Vector*>(a.y)[index] = out;
}

/// One block a piece, some channels, and a row of the filter, whose columns are at most Columns.
template <class T, int V, int Columns>
__global__ void __launch_bounds__(DepthwiseTuning::threads) depthwise_weight(const DepthwiseWeight a) {
  using Vector = Pack<T, V>;
  __shared__ float shared[DepthwiseTuning::threads * V];
  const Piece& piece = find_piece_of_block(a.groups, DepthwiseTuning::piece, blockIdx.x);
  if (piece.expert < 0) return;
  const ConvShape& s = a.shape;
  const int vectors = s.in / V, v0 = blockIdx.y * DepthwiseTuning::lanes;
  const int lanes = min(vectors - v0, DepthwiseTuning::lanes), items = DepthwiseTuning::threads / lanes;
  const int lane = threadIdx.x % lanes, first = threadIdx.x / lanes, ky = blockIdx.z;
  const int height = s.out_height(), width = s.out_width();
  const Vector* x = static_cast<const Vector*>(a.x) + v0 + lane;
  const Vector* grad = static_cast<const Vector*>(a.grad) + v0 + lane;
  float sum[Columns][V] = {}, total[V] = {};  // total: the bias's, by the blocks of the filter's first row
  if (first < items)
    for (int64_t i = piece.begin + first; i < piece.end; i += items) {
      const auto item = static_cast<unsigned>(i);
      const int column = static_cast<int>(item % width), row = static_cast<int>(item / width % height);
      const unsigned image = item / width / height;
      const int from_row = row - s.padding[0] + ky * s.dilation[0];
      const bool inside = from_row >= 0 && from_row < s.height;
      if (!inside && ky > 0) continue;
      float g[V];
      grad[i * vectors].read([&](int c, float value) { g[c] = value; });
      if (ky == 0) {
#pragma unroll
        for (int c = 0; c < V; ++c) total[c] += g[c];
      }
      if (!inside) continue;
      const Vector* line = x + (int64_t(image) * s.height + from_row) * s.width * vectors;
#pragma unroll
      for (int kx = 0; kx < Columns; ++kx) {
        const int from = column - s.padding[1] + kx * s.dilation[1];
        if (kx < s.kernel[1] && from >= 0 && from < s.width)
          line[int64_t(from) * vectors].read([&](int c, float value) { sum[kx][c] = fmaf(value, g[c], sum[kx][c]); });
      }
    }
  const auto join = [&](const float(&mine)[V], int tap) {
    __syncthreads();
#pragma unroll
    for (int c = 0; c < V; ++c) shared[threadIdx.x * V + c] = mine[c];
    __syncthreads();
    for (int c = threadIdx.x; c < lanes * V; c += DepthwiseTuning::threads) {
      float all = 0;
      for (int i = 0; i < items; ++i) all += shared[i * lanes * V + c];
      a.partial[(int64_t(blockIdx.x) * (s.taps() + 1) + tap) * s.in + v0 * V + c] = all;
    }
  };
#pragma unroll
  for (int kx = 0; kx < Columns; ++kx)
    if (kx < s.kernel[1]) join(sum[kx], ky * s.kernel[1] + kx);
  if (ky == 0) join(total, s.taps());
}

}  // namespace detail

/// One launch.
inline cudaError_t depthwise(const Depthwise& a, cudaStream_t stream) {
  if (a.groups.rows == 0) return cudaSuccess;
  return detail::with_type(a.type, [&]<class T>(T) {
    const auto launch = [&]<int V>(std::integral_constant<int, V>) {
      const int64_t places = a.transposed ? int64_t(a.shape.height) * a.shape.width
                                          : int64_t(a.shape.out_height()) * a.shape.out_width();
      const int64_t total = a.groups.rows * places * (a.shape.in / V);
      const int64_t blocks = (total + detail::DepthwiseTuning::threads - 1) / detail::DepthwiseTuning::threads;
      detail::depthwise<T, V><<<static_cast<unsigned>(blocks), detail::DepthwiseTuning::threads, 0, stream>>>(
          a, static_cast<int>(total));
      return cudaGetLastError();
    };
    return detail::vectors_fit(a.shape.in * int64_t(sizeof(T)), 16, a.x, a.weight, a.bias, a.y)
               ? launch(std::integral_constant<int, 16 / sizeof(T)>{})
               : launch(std::integral_constant<int, 1>{});
  });
}

/// Two launches.
inline cudaError_t depthwise_weight(const DepthwiseWeight& a, cudaStream_t stream) {
  const ConvShape& s = a.shape;
  if (s.kernel[1] > depthwise_columns) return cudaErrorInvalidValue;
  return detail::with_type(a.type, [&]<class T>(T) {
    const auto launch = [&]<int V, int Columns>(std::integral_constant<int, V>, std::integral_constant<int, Columns>) {
      const int chunks = (s.in / V + detail::DepthwiseTuning::lanes - 1) / detail::DepthwiseTuning::lanes;
      const dim3 grid(static_cast<unsigned>(a.groups.pieces(detail::DepthwiseTuning::piece)), chunks, s.kernel[0]);
      if (grid.x > 0) detail::depthwise_weight<T, V, Columns><<<grid, detail::DepthwiseTuning::threads, 0, stream>>>(a);
    };
    const auto with_columns = [&]<int V>(std::integral_constant<int, V> vector) {
      s.kernel[1] <= 3 ? launch(vector, std::integral_constant<int, 3>{})
                       : launch(vector, std::integral_constant<int, depthwise_columns>{});
    };
    detail::vectors_fit(s.in * int64_t(sizeof(T)), 16, a.x, a.grad)
        ? with_columns(std::integral_constant<int, 16 / sizeof(T)>{})
        : with_columns(std::integral_constant<int, 1>{});
    return detail::add_pieces_of<T>({.groups = a.groups,
                                     .width = int64_t(s.taps() + 1) * s.in,
                                     .type = a.type,
                                     .partial = a.partial,
                                     .sums = a.d_weight},
                                    detail::DepthwiseTuning::piece, stream);
  });
}

}  // namespace moecod::kernel
