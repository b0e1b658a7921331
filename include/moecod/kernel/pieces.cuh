#pragma once
#include "moecod/kernel/device.cuh"
#include "moecod/kernel/pieces.hpp"

/// Pieces found by a block's first warp, whose lanes read the offsets side by side: what a block does before anything else
/// should not be a chain of reads as long as there are experts.
namespace moecod::kernel {

namespace detail {

/// Calls f(e, begin, end, count, first) in the lane of each expert, 32 at a time, until it returns true in one; that lane, or
/// -1. begin, end: the expert's items; count: its pieces; first: the number of the first. All lanes of the warp call it.
template <class F>
__device__ __forceinline__ int find_expert(const int32_t* offsets, int experts, int64_t each, int64_t size, F&& f) {
  const int lane = threadIdx.x % 32;
  int first = 0;
  for (int e = lane; e - lane < experts; e += 32) {
    const int64_t begin = e < experts ? each * offsets[e] : 0, end = e < experts ? each * offsets[e + 1] : 0;
    const int count = static_cast<int>(pieces_in(end - begin, size));
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

/// The lane's piece, in all lanes; none for lane -1.
__device__ __forceinline__ Piece piece_of_lane(const Piece& mine, int lane) {
  Piece piece;
  if (lane < 0) return piece;
  piece.expert = __shfl_sync(whole_warp, mine.expert, lane);
  piece.begin = __shfl_sync(whole_warp, mine.begin, lane);
  piece.end = __shfl_sync(whole_warp, mine.end, lane);
  piece.first = __shfl_sync(whole_warp, mine.first, lane);
  piece.count = __shfl_sync(whole_warp, mine.count, lane);
  return piece;
}

}  // namespace detail

/// find_piece, for a block that begins with it.
__device__ __forceinline__ const Piece& find_piece_of_block(const Groups& groups, int64_t size, int64_t index) {
  __shared__ Piece piece;
  if (threadIdx.x < 32) {
    Piece mine;
    const int lane = detail::find_expert(
        groups.offsets, groups.experts, groups.each, size, [&](int e, int64_t begin, int64_t end, int count, int first) {
          const int64_t from = begin + (index - first) * size;
          mine = {e, from, from + size < end ? from + size : end, first, count};
          return index >= first && index < first + count;
        });
    const Piece found = detail::piece_of_lane(mine, lane);
    if (threadIdx.x == 0) piece = found;
  }
  __syncthreads();
  return piece;
}

/// pieces_of, for a block that begins with it.
__device__ __forceinline__ const Piece& pieces_of_block(const Groups& groups, int expert, int64_t size) {
  __shared__ Piece piece;
  if (threadIdx.x < 32) {
    Piece mine;
    const int lane = detail::find_expert(groups.offsets, groups.experts, groups.each, size,
                                         [&](int e, int64_t begin, int64_t end, int count, int first) {
                                           mine = {e, begin, end, first, count};
                                           return e == expert;
                                         });
    const Piece found = detail::piece_of_lane(mine, lane);
    if (threadIdx.x == 0) piece = found;
  }
  __syncthreads();
  return piece;
}

}  // namespace moecod::kernel
