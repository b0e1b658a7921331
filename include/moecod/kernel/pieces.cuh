#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Items sorted by expert, cut into pieces of one expert each, without the host knowing where experts begin: experts in
/// their order, each cut every `size` items from its first.
///
/// A block's first warp finds its piece, whose lanes read the offsets side by side: what a block does before anything else
/// should not be a chain of reads as long as there are experts.
namespace moecod::kernel {

/// A run of items of one expert.
struct Piece {
  int expert = -1;
  int64_t begin = 0, end = 0;  ///< items; empty where there is no such piece
  int64_t first = 0;           ///< the number of the expert's first piece
  int64_t count = 0;           ///< pieces of the expert
};

/// Pieces of so many items. Division of 64 bits is slow on a GPU, and there is one an expert.
__device__ __forceinline__ int pieces_in(int64_t items, int64_t size) {
  const int64_t last = items + size - 1;
  return static_cast<int>(last < int64_t(1) << 32 ? static_cast<uint32_t>(last) / static_cast<uint32_t>(size) : last / size);
}

/// The last expert whose begin(e) is at the place or before it. O(log E).
template <class Place, class Begin>
__device__ __forceinline__ int last_begun(int experts, Place place, Begin&& begin) {
  int low = 0, high = experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (begin(middle) <= place ? low : high) = middle;
  }
  return low;
}

/// The expert of a row.
__device__ __forceinline__ int expert_of(const int32_t* offsets, int experts, int64_t row) {
  return last_begun(experts, row, [&](int e) { return offsets[e]; });
}

namespace detail {

/// Calls f(e, begin, end, count, first) in the lane of each expert, 32 at a time, until it returns true in one; that lane, or
/// -1. begin, end: the expert's items; count: its pieces, count_of(items); first: the number of the first. All lanes of the
/// warp call it; those behind the last expert have one without items.
template <class Count, class F>
__device__ __forceinline__ int find_expert(const Groups& groups, Count&& count_of, F&& f) {
  const int lane = threadIdx.x % 32;
  int first = 0;
  for (int e = lane; e - lane < groups.experts; e += 32) {
    const bool is_one = e < groups.experts;
    const int64_t begin = is_one ? groups.each * groups.offsets[e] : 0, end = is_one ? groups.each * groups.offsets[e + 1] : 0;
    const int count = count_of(end - begin);
    int sum = count;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int below = __shfl_up_sync(whole_warp, sum, offset);
      if (lane >= offset) sum += below;
    }
    const unsigned found = __ballot_sync(whole_warp, f(e, begin, end, count, first + sum - count));
    if (found) return __ffs(found) - 1;
    first += __shfl_sync(whole_warp, sum, 31);
  }
  return -1;
}

/// Of all items of an expert as a piece, what `match` makes of the one that it says yes to; else one of expert -1. For a
/// block that begins with it.
template <class Match>
__device__ __forceinline__ const Piece& piece_of_block(const Groups& groups, int64_t size, Match&& match) {
  __shared__ Piece piece;
  if (threadIdx.x < 32) {
    Piece mine;
    const auto count_of = [&](int64_t items) { return pieces_in(items, size); };
    const int lane = find_expert(groups, count_of, [&](int e, int64_t begin, int64_t end, int count, int first) {
      mine = {e, begin, end, first, count};
      return match(mine);
    });
    if (lane < 0) mine = {};
    if (static_cast<int>(threadIdx.x) == (lane < 0 ? 0 : lane)) piece = mine;
  }
  __syncthreads();
  return piece;
}

}  // namespace detail

/// The piece of that number, or one of expert -1 behind the last. For a block that begins with it.
__device__ __forceinline__ const Piece& find_piece_of_block(const Groups& groups, int64_t size, int64_t index) {
  return detail::piece_of_block(groups, size, [&](Piece& piece) {
    piece.begin += (index - piece.first) * size;
    if (piece.begin + size < piece.end) piece.end = piece.begin + size;
    return index >= piece.first && index < piece.first + piece.count;
  });
}

/// All items of an expert, the number of its first piece and how many it has. For a block that begins with it.
__device__ __forceinline__ const Piece& pieces_of_block(const Groups& groups, int expert, int64_t size) {
  return detail::piece_of_block(groups, size, [&](const Piece& piece) { return piece.expert == expert; });
}

}  // namespace moecod::kernel
