#pragma once
#include <type_traits>

#include "moecod/kernel/device.cuh"
#include "moecod/kernel/pieces.cuh"
#include "moecod/kernel/rows.cuh"

/// What a grouped linear layer needs beside its products: biases, their gradients, and zeros for idle experts.
///
/// Sums go piece by piece and then over an expert's pieces in their order: no atomics. Bytes: x once.
namespace moecod::kernel {

namespace detail {

struct ColumnTuning {
  static constexpr int threads = 256;
  static constexpr int piece = column_sums_piece;
};

template <class T, int V>
__global__ void __launch_bounds__(ColumnTuning::threads) add_bias(const AddBias a) {
  const Piece& piece = find_piece_of_block(a.groups, ColumnTuning::piece, blockIdx.x);
  if (piece.expert < 0) return;
  const auto vectors = static_cast<int>(a.width / V);
  const int lanes = vectors < ColumnTuning::threads ? vectors : ColumnTuning::threads;
  const int rows = ColumnTuning::threads / lanes;
  if (threadIdx.x >= rows * lanes) return;
  using Vector = Pack<T, V>;
  for (int v = threadIdx.x % lanes; v < vectors; v += lanes) {
    float bias[V];
    reinterpret_cast<const Vector*>(static_cast<const T*>(a.bias) + piece.expert * a.width)[v].read(
        [&](int c, float b) { bias[c] = b; });
    for (int64_t i = piece.begin + threadIdx.x / lanes; i < piece.end; i += rows) {
      Vector* at = reinterpret_cast<Vector*>(static_cast<T*>(a.x) + i * a.width) + v;
      float x[V];
      at->read([&](int c, float b) { x[c] = b + bias[c]; });
      at->write([&](int c) { return x[c]; });
    }
  }
}

/// One block a piece and the vectors of some columns: its rows of lanes share the piece's items, and their sums are added in
/// the rows' order.
template <class T, int V>
__global__ void __launch_bounds__(ColumnTuning::threads) sum_columns(const ColumnSums a, int lanes) {
  using Vector = Pack<T, V>;
  __shared__ float part[ColumnTuning::threads * V];
  const Piece& piece = find_piece_of_block(a.groups, ColumnTuning::piece, blockIdx.x);
  if (piece.expert < 0) return;
  const int rows = ColumnTuning::threads / lanes, lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
  const int64_t vectors = a.width / V, v = int64_t(blockIdx.y) * lanes + lane;
  float sum[V] = {};
  if (v < vectors) {
#pragma unroll 4
    for (int64_t i = piece.begin + row; i < piece.end; i += rows)
      static_cast<const Vector*>(a.x)[i * vectors + v].read([&](int c, float x) { sum[c] += x; });
  }
#pragma unroll
  for (int c = 0; c < V; ++c) part[threadIdx.x * V + c] = sum[c];
  __syncthreads();
  for (int i = threadIdx.x; i < lanes * V; i += ColumnTuning::threads) {
    const int64_t c = int64_t(blockIdx.y) * lanes * V + i;
    if (c >= a.width) continue;
    float all = 0;
    for (int r = 0; r < rows; ++r) all += part[r * lanes * V + i];
    a.partial[int64_t(blockIdx.x) * a.width + c] = all;
  }
}

/// One block an expert and 32 columns; its warps share the expert's pieces, and their sums are added in the warps' order.
template <class T>
__global__ void __launch_bounds__(ColumnTuning::threads) sum_pieces(const ColumnSums a, int64_t size) {
  constexpr int warps = ColumnTuning::threads / 32;
  __shared__ float part[warps][33];
  const Piece& piece = pieces_of_block(a.groups, blockIdx.y, size);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0;
  if (c < a.width) {
#pragma unroll 8
    for (int64_t p = warp; p < piece.count; p += warps) sum += a.partial[(piece.first + p) * a.width + c];
  }
  part[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= a.width) return;
  for (int w = 1; w < warps; ++w) sum += part[w][lane];
  from_float(sum, static_cast<T*>(a.sums)[blockIdx.y * a.width + c]);
}

/// The second half of sums over columns: `partial` has those of pieces of so many items.
template <class T>
cudaError_t add_pieces_of(const ColumnSums& a, int64_t size, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((a.width + 31) / 32), a.groups.experts);
  sum_pieces<T><<<grid, ColumnTuning::threads, 0, stream>>>(a, size);
  return cudaGetLastError();
}

static __global__ void __launch_bounds__(ColumnTuning::threads) zero_idle(const ZeroIdle a) {
  const int e = blockIdx.y;
  if (a.groups.offsets[e] != a.groups.offsets[e + 1]) return;
  uint4* row = reinterpret_cast<uint4*>(static_cast<char*>(a.x) + e * a.row_bytes);
  for (int64_t i = int64_t(blockIdx.x) * ColumnTuning::threads + threadIdx.x; i < a.row_bytes / 16;
       i += int64_t(gridDim.x) * ColumnTuning::threads)
    row[i] = {0, 0, 0, 0};
}

/// Calls f with a value of the element type.
template <class F>
cudaError_t with_type(Type type, F&& f) {
  switch (type) {
    case Type::float32: return f(float{});
    case Type::bfloat16: return f(__nv_bfloat16{});
    case Type::float16: return f(__half{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace detail

/// One launch.
inline cudaError_t add_bias(const AddBias& a, cudaStream_t stream) {
  if (a.groups.items() == 0 || a.width == 0) return cudaSuccess;
  return detail::with_type(a.type, [&]<class T>(T) {
    constexpr int wide = 16 / sizeof(T);
    const auto blocks = static_cast<unsigned>(a.groups.pieces(detail::ColumnTuning::piece));
    if (detail::vectors_fit(a.width * int64_t(sizeof(T)), 16, a.bias, a.x))
      detail::add_bias<T, wide><<<blocks, detail::ColumnTuning::threads, 0, stream>>>(a);
    else
      detail::add_bias<T, 1><<<blocks, detail::ColumnTuning::threads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

/// Two launches.
inline cudaError_t column_sums(const ColumnSums& a, cudaStream_t stream) {
  if (a.width == 0) return cudaSuccess;
  return detail::with_type(a.type, [&]<class T>(T) {
    const auto launch = [&]<int V>(std::integral_constant<int, V>) {
      int lanes = 1;
      while (lanes < 32 && lanes * V < a.width) lanes *= 2;
      const dim3 grid(static_cast<unsigned>(a.groups.pieces(detail::ColumnTuning::piece)),
                      static_cast<unsigned>((a.width / V + lanes - 1) / lanes));
      if (grid.x > 0) detail::sum_columns<T, V><<<grid, detail::ColumnTuning::threads, 0, stream>>>(a, lanes);
    };
    detail::vectors_fit(a.width * int64_t(sizeof(T)), 16, a.x) ? launch(std::integral_constant<int, 16 / sizeof(T)>{})
                                                               : launch(std::integral_constant<int, 1>{});
    return detail::add_pieces_of<T>(a, detail::ColumnTuning::piece, stream);
  });
}

/// One launch.
inline cudaError_t zero_idle(const ZeroIdle& a, cudaStream_t stream) {
  if (a.row_bytes == 0) return cudaSuccess;
  const int64_t blocks = (a.row_bytes / 16 + 1023) / 1024;
  detail::zero_idle<<<dim3(static_cast<unsigned>(blocks < 64 ? blocks : 64), a.groups.experts),
                      detail::ColumnTuning::threads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace moecod::kernel
