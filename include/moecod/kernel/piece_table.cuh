#pragma once
#include "moecod/kernel/pieces.cuh"

/// Pieces (pieces.cuh) for blocks that take many: a table in shared memory instead of a walk over the experts for each.
namespace moecod::kernel::detail {

/// What both kinds of cutting share.
struct ExpertsPieces {
  int32_t* first;  ///< [experts + 1], shared: the number of each expert's first piece; the last: of all
  Groups groups;
  int size;

  static constexpr uint32_t bytes(int experts) { return (experts + 1) * sizeof(int32_t); }

  __device__ int pieces() const { return first[groups.experts]; }

  /// The pieces of an expert: their first and their number.
  __device__ Piece of(int expert) const {
    Piece piece;
    piece.expert = expert;
    piece.first = first[expert];
    piece.count = first[expert + 1] - first[expert];
    return piece;
  }

  __device__ int expert_of_piece(int index) const { return expert_of(first, groups.experts, index); }

 protected:
  /// Of a warp; also calls f(e, pieces) in the lane of each expert, 32 at a time.
  template <class Count, class F>
  __device__ void fill_by(Count&& count_of, F&& f) const {
    find_expert(groups, count_of, [&](int e, int64_t, int64_t, int count, int before) {
      if (e < groups.experts) first[e + 1] = before + count;
      f(e, count);
      return false;
    });
    if (threadIdx.x % 32 == 0) first[0] = 0;
  }

  /// All items of the expert.
  __device__ Piece all_of(int expert) const {
    Piece piece = of(expert);
    piece.begin = groups.each * groups.offsets[piece.expert];
    piece.end = groups.each * groups.offsets[piece.expert + 1];
    return piece;
  }
};

/// Pieces cut every `size` items, as find_piece_of_block has them.
struct PieceTable : ExpertsPieces {
  static constexpr uint32_t bytes(int experts) { return ExpertsPieces::bytes(experts) + (experts + 1) * sizeof(uint16_t); }

  /// How many experts before each have an odd number of pieces, and in all: [experts + 1], behind `first`.
  __device__ uint16_t* odd() const { return reinterpret_cast<uint16_t*>(first + groups.experts + 1); }

  /// A warp's work.
  __device__ void fill() const {
    int before = 0;
    fill_by([&](int64_t items) { return pieces_in(items, size); }, [&](int e, int count) {
      const unsigned odds = __ballot_sync(whole_warp, count % 2);
      if (e < groups.experts) odd()[e + 1] = static_cast<uint16_t>(before + __popc(odds << (31 - threadIdx.x % 32)));
      before += __popc(odds);
    });
    if (threadIdx.x % 32 == 0) odd()[0] = 0;
  }

  /// The piece of that number, which the expert has.
  __device__ Piece find(int expert, int index) const {
    Piece piece = all_of(expert);
    piece.begin += (index - piece.first) * size;
    piece.end = min(piece.begin + size, piece.end);
    return piece;
  }
};

/// Pieces of evenly many items, in steps of 64 from the expert's first: as many as `size`, a multiple of 64, goes into its
/// items, rounded, halves down, and at least one; so that an expert of a few more than others has no piece more.
struct EvenPieceTable : ExpertsPieces {
  /// A warp's work.
  __device__ void fill() const {
    fill_by([&](int64_t items) { return items > 0 ? max(pieces_in(items - size / 2, size), 1) : 0; }, [](int, int) {});
  }

  /// The piece of that number, of those that there are.
  __device__ Piece find(int index) const {
    Piece piece = all_of(expert_of_piece(index));
    const auto steps = static_cast<unsigned>(pieces_in(piece.end - piece.begin, 64));
    const auto count = static_cast<unsigned>(piece.count);
    const unsigned i = index - static_cast<unsigned>(piece.first), each = steps / count, more = steps % count;
    const int64_t begin = piece.begin;
    piece.begin = begin + 64 * int64_t(i * each + min(i, more));
    piece.end = min(piece.end, begin + 64 * int64_t((i + 1) * each + min(i + 1, more)));
    return piece;
  }
};

}  // namespace moecod::kernel::detail
