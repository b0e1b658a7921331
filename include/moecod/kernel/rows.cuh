#pragma once
#include "moecod/kernel/device.cuh"

/// How threads are laid over N rows of vectors: what gather and combine share.
namespace moecod::kernel::detail {

struct RowTuning {
  static constexpr int threads = 256;
  static constexpr int few_slots = 2;         // slots a row whose places stay in registers
  static constexpr int many_slots = 8;        // likewise; further slots are taken in turns of as many
  static constexpr int64_t busy_blocks = 2048;  // below, long rows are split over several blocks
  static constexpr int ahead = 4;  // vectors that a lane fetches before it writes them
  /// Blocks a multiprocessor, at least: bounds the registers.
  template <int Slots>
  static constexpr int forward = resident<threads, Slots <= few_slots ? 6 : 2>;
  template <int Slots>
  static constexpr int backward = resident<threads, Slots <= few_slots ? 5 : 2>;
};

/// `lanes` neighbouring lanes take a row (a power of two, at most a warp), grid.y shares of the row's vectors.
struct RowShape {
  int lanes = 32;
  dim3 grid;
};

/// `long_pieces`: lanes may idle, so that a row is written in long pieces; else as few as possible do.
inline RowShape row_shape(int64_t rows, int64_t vectors, bool long_pieces) {
  RowShape shape;
  if (vectors < 8) {
    for (shape.lanes = 1; shape.lanes < vectors;) shape.lanes *= 2;
  } else {
    const auto idle = [&](int lanes) { return (vectors + lanes - 1) / lanes * lanes - vectors; };
    if (long_pieces) {
      while (shape.lanes > 8 && 3 * idle(shape.lanes) > vectors) shape.lanes /= 2;
    } else {
      for (int lanes : {16, 8})
        if (idle(lanes) < idle(shape.lanes)) shape.lanes = lanes;
    }
  }
  const int64_t groups = RowTuning::threads / shape.lanes, blocks = (rows + groups - 1) / groups;
  const int64_t most = (vectors + 4 * shape.lanes - 1) / (4 * shape.lanes);  // at least four vectors a lane
  int64_t splits = blocks > 0 ? RowTuning::busy_blocks / blocks : 1;
  splits = splits < 1 ? 1 : splits > most ? most : splits > 65535 ? 65535 : splits;
  shape.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  return shape;
}

/// Where slots s0, s0 + 1, ... of row n were sorted to, less `first`; -1 where unused or outside of [0, count).
template <int Slots>
__device__ __forceinline__ void places(const int32_t* position, int64_t n, int slots, int s0, int64_t first,
                                       int64_t count, int (&to)[Slots]) {
#pragma unroll
  for (int i = 0; i < Slots; ++i) {
    const int64_t at = s0 + i < slots ? position[n * slots + s0 + i] - first : -1;
    to[i] = at >= 0 && at < count ? static_cast<int>(at) : -1;
  }
}

/// Whether vectors of `bytes` fit the rows and every pointer.
template <class... Pointers>
bool vectors_fit(int64_t row_bytes, int bytes, Pointers... pointers) {
  return row_bytes % bytes == 0 && ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

}  // namespace moecod::kernel::detail
