#pragma once
#include "moecod/kernel/pieces.cuh"

/// Pieces (pieces.cuh) for blocks that take many: a table in shared memory instead of a walk over the experts for each.
namespace moecod::kernel::detail {

struct PieceTable {
  int32_t* first;  ///< [experts + 1], shared: the number of each expert's first piece; the last: of all
  Groups groups;
  int size;

  __device__ int pieces() const { return first[groups.experts]; }

  /// A warp's work.
  __device__ void fill() const {
    find_expert(groups, size, [&](int e, int64_t, int64_t, int count, int before) {
      if (e < groups.experts) first[e + 1] = before + count;
      return false;
    });
    if (threadIdx.x % 32 == 0) first[0] = 0;
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
