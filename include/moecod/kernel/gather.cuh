#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/rows.cuh"

/// Gather: rows, copied to where their slots were sorted to.
///
/// A row is read once and written to each of its places, so the bytes are N rows in, M rows out. Its backward is
/// combine without weights (combine.cuh).
namespace moecod::kernel {

namespace detail {

template <class Vector, int Slots>
__global__ void __launch_bounds__(RowTuning::threads) gather(const Gather a, int lanes, int vectors) {
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t n = int64_t(blockIdx.x) * (RowTuning::threads / lanes) + threadIdx.x / lanes;
  if (n >= a.rows) return;
  const Vector* x = static_cast<const Vector*>(a.x) + n * vectors;
  Vector* out = static_cast<Vector*>(a.out);
  for (int s0 = 0; s0 < a.slots; s0 += Slots) {
    int to[Slots];
    places(a.position, n, a.slots, s0, a.first, a.count, to);
    bool any = false;
#pragma unroll
    for (int i = 0; i < Slots; ++i) any |= to[i] >= 0;
    if (!any) continue;
    const int step = gridDim.y * lanes;
    for (int first = blockIdx.y * lanes + lane; first < vectors; first += RowTuning::ahead * step) {
      Vector value[RowTuning::ahead];
#pragma unroll
      for (int u = 0; u < RowTuning::ahead; ++u)
        if (const int v = first + u * step; v < vectors) value[u] = x[v];
#pragma unroll
      for (int i = 0; i < Slots; ++i)
        if (to[i] >= 0) {
          Vector* row = out + int64_t(to[i]) * vectors;
#pragma unroll
          for (int u = 0; u < RowTuning::ahead; ++u)
            if (const int v = first + u * step; v < vectors) row[v] = value[u];
        }
    }
  }
}

template <class Vector>
cudaError_t launch_gather(const Gather& a, cudaStream_t stream) {
  const int64_t vectors = a.row_bytes / int64_t(sizeof(Vector));
  const RowShape shape = row_shape(a.rows, vectors, /*long_pieces=*/true);
  const auto kernel =
      a.slots <= RowTuning::few_slots ? gather<Vector, RowTuning::few_slots> : gather<Vector, RowTuning::many_slots>;
  kernel<<<shape.grid, RowTuning::threads, 0, stream>>>(a, shape.lanes, static_cast<int>(vectors));
  return cudaGetLastError();
}

}  // namespace detail

/// Launches one kernel. Rows of any type, below 2^31 elements each.
inline cudaError_t gather(const Gather& a, cudaStream_t stream) {
  if (a.rows == 0 || a.count == 0 || a.row_bytes == 0) return cudaSuccess;
  const auto fit = [&](int bytes) { return detail::vectors_fit(a.row_bytes, bytes, a.x, a.out); };
  if (fit(16)) return detail::launch_gather<uint4>(a, stream);
  if (fit(4)) return detail::launch_gather<uint32_t>(a, stream);
  if (fit(2)) return detail::launch_gather<uint16_t>(a, stream);
  return detail::launch_gather<uint8_t>(a, stream);
}

}  // namespace moecod::kernel
