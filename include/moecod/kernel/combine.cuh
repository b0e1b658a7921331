#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/rows.cuh"

/// Combine: each row fetches the results of its slots and adds them, weighted, in the order of the slots; and the
/// backward of it, which is a weighted gather with one dot product a slot.
///
/// No atomics: a row is one group of lanes' own. Bytes: forward M rows in, N out; backward N + M rows in, M out.
namespace moecod::kernel {

namespace detail {

template <class T, int V, int Slots>
__global__ void __launch_bounds__(RowTuning::threads, RowTuning::forward<Slots>)
    combine_forward(const Combine a, int lanes, int vectors) {
  using Vector = Pack<T, V>;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t n = int64_t(blockIdx.x) * (RowTuning::threads / lanes) + threadIdx.x / lanes;
  if (n >= a.rows) return;
  const Vector* sorted = static_cast<const Vector*>(a.sorted);
  Vector* y = static_cast<Vector*>(a.y) + n * vectors;

  int from[Slots];
  float weight[Slots];
  const auto fetch_slots = [&](int s0) {
    places(a.position, n, a.slots, s0, a.first, a.count, from);
#pragma unroll
    for (int i = 0; i < Slots; ++i)
      weight[i] = a.weights && s0 + i < a.slots ? a.weights[n * a.slots + s0 + i] : 1.0f;
  };
  if (a.slots <= Slots) fetch_slots(0);
#pragma unroll 1
  for (int v = blockIdx.y * lanes + lane; v < vectors; v += gridDim.y * lanes) {
    float sum[V] = {};
#pragma unroll 1
    for (int s0 = 0; s0 < a.slots; s0 += Slots) {
      if (a.slots > Slots) fetch_slots(s0);
      Vector x[Slots];
#pragma unroll
      for (int i = 0; i < Slots; ++i)
        if (from[i] >= 0) x[i] = sorted[int64_t(from[i]) * vectors + v];
#pragma unroll
      for (int i = 0; i < Slots; ++i)
        if (from[i] >= 0) x[i].read([&](int c, float value) { sum[c] = fmaf(weight[i], value, sum[c]); });
    }
    Vector out;
    out.write([&](int c) { return sum[c]; });
    y[v] = out;
  }
}

template <class T, int V, int Slots>
__global__ void __launch_bounds__(RowTuning::threads, RowTuning::backward<Slots>)
    combine_backward(const CombineBackward a, int lanes, int vectors) {
  using Vector = Pack<T, V>;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t row = int64_t(blockIdx.x) * (RowTuning::threads / lanes) + threadIdx.x / lanes;
  const bool live = row < a.rows;  // all lanes stay for the shuffles
  const int64_t n = live ? row : 0;
  const Vector* grad = static_cast<const Vector*>(a.grad) + n * vectors;
  const Vector* sorted = static_cast<const Vector*>(a.sorted);
  Vector* d_sorted = static_cast<Vector*>(a.d_sorted);

#pragma unroll 1
  for (int s0 = 0; s0 < a.slots; s0 += Slots) {
    int at[Slots];
    float weight[Slots], dot[Slots];
    places(a.position, n, a.slots, s0, 0, live ? INT_MAX : 0, at);
#pragma unroll
    for (int i = 0; i < Slots; ++i) {
      weight[i] = s0 + i < a.slots ? a.weights[n * a.slots + s0 + i] : 0.0f;
      dot[i] = 0.0f;
    }
#pragma unroll 1
    for (int v = blockIdx.y * lanes + lane; v < vectors; v += gridDim.y * lanes) {
      // All loads before the first use: even a conversion waits for what it converts.
      const Vector g_in = grad[v];
      Vector x[Slots];
      if (a.d_weights) {
#pragma unroll
        for (int i = 0; i < Slots; ++i)
          if (at[i] >= 0) x[i] = sorted[int64_t(at[i]) * vectors + v];
      }
      float g[V];
      g_in.read([&](int c, float value) { g[c] = value; });
      if (a.d_weights) {
#pragma unroll
        for (int i = 0; i < Slots; ++i)
          if (at[i] >= 0) x[i].read([&](int c, float value) { dot[i] = fmaf(g[c], value, dot[i]); });
      }
      if (d_sorted) {
#pragma unroll
        for (int i = 0; i < Slots; ++i)
          if (at[i] >= 0) {
            Vector out;
            out.write([&](int c) { return weight[i] * g[c]; });
            d_sorted[int64_t(at[i]) * vectors + v] = out;
          }
      }
    }
    if (a.d_weights) {
      float* out = gridDim.y > 1 ? a.partial : a.d_weights;
#pragma unroll
      for (int i = 0; i < Slots; ++i) {
        for (int offset = lanes / 2; offset > 0; offset /= 2)
          dot[i] += __shfl_xor_sync(whole_warp, dot[i], offset);
        if (lane == 0 && live && s0 + i < a.slots)
          out[(n * a.slots + s0 + i) * gridDim.y + blockIdx.y] = dot[i];
      }
    }
  }
}

/// d_weights[i] = the sum of its `splits` parts, one warp each.
static __global__ void __launch_bounds__(RowTuning::threads)
    add_parts(const float* partial, int64_t size, int splits, float* d_weights) {
  const int lane = threadIdx.x % 32;
  const int64_t i = int64_t(blockIdx.x) * (RowTuning::threads / 32) + threadIdx.x / 32;
  if (i >= size) return;
  float sum = 0.0f;
  for (int part = lane; part < splits; part += 32) sum += partial[i * splits + part];
  sum = sum_of_lanes<32>(sum);
  if (lane == 0) d_weights[i] = sum;
}

/// Calls f<T, V>() with the element type, and the elements a vector that the rows and pointers allow.
template <class F, class... Pointers>
cudaError_t with_vectors(Type type, int64_t width, F&& f, Pointers... pointers) {
  const auto choose = [&]<class T>() {
    const int64_t bytes = width * int64_t(sizeof(T));
    if (vectors_fit(bytes, 16, pointers...)) return f.template operator()<T, 16 / sizeof(T)>();
    if constexpr (sizeof(T) < 4)
      if (vectors_fit(bytes, 4, pointers...)) return f.template operator()<T, 4 / sizeof(T)>();
    return f.template operator()<T, 1>();
  };
  if (type == Type::float32) return choose.template operator()<float>();
  if (type == Type::bfloat16) return choose.template operator()<__nv_bfloat16>();
  return choose.template operator()<__half>();
}

}  // namespace detail

/// Launches one kernel.
inline cudaError_t combine_forward(const Combine& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const auto launch = [&]<class T, int V>() {
    const int64_t vectors = a.width / V;
    const detail::RowShape shape = detail::row_shape(a.rows, vectors, /*long_pieces=*/false);
    const auto kernel = a.slots <= detail::RowTuning::few_slots
                            ? detail::combine_forward<T, V, detail::RowTuning::few_slots>
                            : detail::combine_forward<T, V, detail::RowTuning::many_slots>;
    kernel<<<shape.grid, detail::RowTuning::threads, 0, stream>>>(a, shape.lanes, static_cast<int>(vectors));
    return cudaGetLastError();
  };
  return detail::with_vectors(a.type, a.width, launch, a.sorted, a.y);
}

/// Into how many parts combine_backward splits the rows. The parts of d_weights are then summed by a second kernel.
inline int combine_backward_splits(const CombineBackward& a) {
  int splits = 1;
  if (a.rows > 0 && a.width > 0)
    detail::with_vectors(
        a.type, a.width,
        [&]<class T, int V>() {
          splits = static_cast<int>(detail::row_shape(a.rows, a.width / V, /*long_pieces=*/true).grid.y);
          return cudaSuccess;
        },
        a.grad, a.sorted, a.d_sorted);
  return splits;
}

/// Launches one kernel, or two where there are several splits and d_weights is wanted.
inline cudaError_t combine_backward(const CombineBackward& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  if (a.width == 0)
    return a.d_weights ? cudaMemsetAsync(a.d_weights, 0, sizeof(float) * a.rows * a.slots, stream) : cudaSuccess;
  const auto launch = [&]<class T, int V>() {
    const int64_t vectors = a.width / V;
    const detail::RowShape shape = detail::row_shape(a.rows, vectors, /*long_pieces=*/true);
    const auto kernel = a.slots <= detail::RowTuning::few_slots
                            ? detail::combine_backward<T, V, detail::RowTuning::few_slots>
                            : detail::combine_backward<T, V, detail::RowTuning::many_slots>;
    kernel<<<shape.grid, detail::RowTuning::threads, 0, stream>>>(a, shape.lanes, static_cast<int>(vectors));
    if (const cudaError_t error = cudaGetLastError()) return error;
    if (a.d_weights && shape.grid.y > 1) {
      const int64_t size = a.rows * a.slots, each = detail::RowTuning::threads / 32;
      detail::add_parts<<<static_cast<unsigned>((size + each - 1) / each), detail::RowTuning::threads, 0, stream>>>(
          a.partial, size, static_cast<int>(shape.grid.y), a.d_weights);
    }
    return cudaGetLastError();
  };
  return detail::with_vectors(a.type, a.width, launch, a.grad, a.sorted, a.d_sorted);
}

}  // namespace moecod::kernel
