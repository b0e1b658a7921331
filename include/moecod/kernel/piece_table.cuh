#pragma once
#include "moecod/kernel/device.cuh"
#include "moecod/kernel/pieces.hpp"

/// Pieces (pieces.hpp) for blocks that take many: a table in shared memory instead of a walk over the experts for each.
namespace moecod::kernel::detail {

struct PieceTable {
  int32_t* first;  ///< [experts + 1], shared: the number of each expert's first piece; the last: of all
  Groups groups;
  int size;

  __device__ int pieces() const { return first[groups.experts]; }

  /// A warp's work.
  __device__ void fill() const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int before = 0;
    for (int e = lane; e - lane < groups.experts; e += 32) {
      int sum = e < groups.experts ? static_cast<int>(pieces_in(
                                         groups.each * (groups.offsets[e + 1] - groups.offsets[e]), size))
                                   : 0;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(whole_warp, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (e < groups.experts) first[e + 1] = before + sum;
      before += __shfl_sync(whole_warp, sum, 31);
    }
    if (lane == 0) first[0] = 0;
  }

  /// The pieces of an expert: their first and their number.
  __device__ Piece of(int expert) const {
    Piece piece;
    piece.expert = expert;
    piece.first = first[expert];
    piece.count = first[expert + 1] - first[expert];
    return piece;
  }

  /// The piece of that number, of those that there are.
  __device__ Piece find(int index) const {
    int low = 0, high = groups.experts;  // first[low] <= index < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= index ? low : high) = middle;
    }
    Piece piece = of(low);
    piece.begin = groups.each * groups.offsets[low] + (index - piece.first) * size;
    piece.end = min(piece.begin + size, groups.each * groups.offsets[low + 1]);
    return piece;
  }
};

}  // namespace moecod::kernel::detail
