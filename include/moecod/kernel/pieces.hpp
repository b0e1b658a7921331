#pragma once
#include "moecod/kernel/arguments.hpp"

/// Items sorted by expert, cut into pieces of one expert each, without the host knowing where experts begin.
namespace moecod::kernel {

/// A run of items of one expert.
struct Piece {
  int expert = -1;
  int64_t begin = 0, end = 0;  ///< items; empty where there is no such piece
  int64_t first = 0;           ///< the number of the expert's first piece
  int64_t count = 0;           ///< pieces of the expert
};

/// Pieces of so many items. Division of 64 bits is slow on a GPU, and there is one an expert.
MOECOD_HOST_DEVICE inline int64_t pieces_in(int64_t items, int64_t size) {
  const int64_t last = items + size - 1;
  return last < int64_t(1) << 32 ? static_cast<uint32_t>(last) / static_cast<uint32_t>(size) : last / size;
}

/// Piece `index`: experts in their order, each cut every `size` items from its first. One thread's work, O(E).
MOECOD_HOST_DEVICE inline Piece find_piece(const int32_t* offsets, int experts, int64_t each, int64_t size,
                                           int64_t index) {
  Piece piece;
  int64_t first = 0, begin = each * offsets[0];
  for (int e = 0; e < experts; ++e) {
    const int64_t end = each * offsets[e + 1], count = pieces_in(end - begin, size);
    if (index < first + count) {
      const int64_t from = begin + (index - first) * size;
      piece.expert = e;
      piece.begin = from;
      piece.end = from + size < end ? from + size : end;
      piece.first = first;
      piece.count = count;
      return piece;
    }
    first += count;
    begin = end;
  }
  return piece;
}

/// The pieces of an expert: the number of the first, and how many.
MOECOD_HOST_DEVICE inline Piece pieces_of(const int32_t* offsets, int expert, int64_t each, int64_t size) {
  Piece piece;
  piece.expert = expert;
  for (int e = 0; e <= expert; ++e) {
    piece.begin = each * offsets[e];
    piece.end = each * offsets[e + 1];
    piece.first += piece.count;
    piece.count = pieces_in(piece.end - piece.begin, size);
  }
  return piece;
}

/// The expert of a row: the last that begins at it or before. O(log E).
MOECOD_HOST_DEVICE inline int expert_of(const int32_t* offsets, int experts, int64_t row) {
  int low = 0, high = experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

}  // namespace moecod::kernel
