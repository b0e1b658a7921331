#pragma once
#include "moecod/kernel/conv_tile.cuh"

/// What becomes of a tile's sums, from the registers in which products of warpgroups leave them: lane l of a warp holds
/// rows l / 4 and l / 4 + 8 of the warp's sixteen and columns 8 j + 2 (l % 4) and the next.
namespace moecod::kernel::detail {

#if MOECOD_HOPPER_CODE

__device__ __forceinline__ uint32_t pack(float x, float y) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(x, y);
  return reinterpret_cast<const uint32_t&>(two);
}
__device__ __forceinline__ float2 unpack(uint32_t two) { return to_floats(reinterpret_cast<const __nv_bfloat162&>(two)); }

/// Lane q of each four, which has part q of four vectors, gets all parts of vector q.
__device__ __forceinline__ uint4 vector_of_four(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t ab = __shfl_xor_sync(whole_warp, odd ? a : b, 1), cd = __shfl_xor_sync(whole_warp, odd ? c : d, 1);
  (odd ? a : b) = ab;
  (odd ? c : d) = cd;
  const uint32_t ac = __shfl_xor_sync(whole_warp, high ? a : c, 2), bd = __shfl_xor_sync(whole_warp, high ? b : d, 2);
  (high ? a : c) = ac;
  (high ? b : d) = bd;
  return {a, b, c, d};
}

/// Calls f(row, column, vector) for the 16 bytes of each row and 8 columns that this lane holds after an exchange;
/// value(i, k) is what becomes of sums[i][k], for `Columns` columns.
template <class Tuning, int Columns, class Value, class F>
__device__ __forceinline__ void each_vector(Value&& value, F&& f) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Tuning::rows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 64 * (warp / 4 * Tuning::rows + i) + 16 * (warp % 4) + 8 * half + lane / 4;
#pragma unroll
      for (int j = 0; j < Columns / 8; j += 4) {
        const auto part = [&](int k) { return pack(value(i, 4 * k + 2 * half), value(i, 4 * k + 2 * half + 1)); };
        f(row, 8 * (j + lane % 4), vector_of_four(part(j), part(j + 1), part(j + 2), part(j + 3)));
      }
    }
}

/// The tile, rounded, to rows of `stride` channels.
template <class Tuning, int Columns, class Value>
__device__ __forceinline__ void store_tile(__nv_bfloat16* y, int stride, int most, const ConvTile& tile, Value&& value) {
  const int rows = tile.rows(), channels = most - tile.channel;
  __nv_bfloat16* to = y + tile.piece.begin * stride + tile.channel;
  each_vector<Tuning, Columns>(value, [&](int row, int column, uint4 vector) {
    if (row < rows && column < channels)
      *reinterpret_cast<uint4*>(to + int64_t(row) * stride + column) = vector;
  });
}

/// Mean and squares about the mean of each channel of the rounded tile, taken about the tile's first row, so that
/// nothing cancels; by shuffles over a warp's rows, then over the warps through `base` and `part`.
template <class Tuning>
__device__ __forceinline__ void conv_moments(const ConvWork& work, const ConvTile& tile,
                                             const float (&sums)[Tuning::rows][32 * Tuning::columns], float* base,
                                             float2* part) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = tile.rows();
  const auto rounded = [&](int i, int k) { return to_float(__float2bfloat16_rn(sums[i][k])); };
  if (warp == 0 && lane < 4)
#pragma unroll
    for (int j = 0; j < Tuning::channels / 8; ++j)
      *reinterpret_cast<float2*>(base + 8 * j + 2 * lane) = {rounded(0, 4 * j), rounded(0, 4 * j + 1)};
  hopper::named_barrier(1, Tuning::workers);
  const bool high = lane & 16, middle = lane & 8;
#pragma unroll
  for (int j = 0; j < Tuning::channels / 8; ++j) {
    const float2 about = *reinterpret_cast<const float2*>(base + 8 * j + lane % 4 * 2);
    float2 first{0, 0}, second{0, 0};  // sum, sum of squares of either column
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 64 * (warp / 4 * Tuning::rows + i) + 16 * (warp % 4) + 8 * half + lane / 4;
        const float x = row < rows ? rounded(i, 4 * j + 2 * half) - about.x : 0;
        const float y = row < rows ? rounded(i, 4 * j + 2 * half + 1) - about.y : 0;
        first.x += x;
        first.y += x * x;
        second.x += y;
        second.y += y * y;
      }
    // Each exchange halves what a lane goes on with.
    const float2 away = high ? first : second, kept = high ? second : first;
    const float sum = kept.x + __shfl_xor_sync(whole_warp, away.x, 16);
    const float square = kept.y + __shfl_xor_sync(whole_warp, away.y, 16);
    float mine = (middle ? square : sum) + __shfl_xor_sync(whole_warp, middle ? sum : square, 8);
    mine += __shfl_xor_sync(whole_warp, mine, 4);
    if (!(lane & 4))
      reinterpret_cast<float*>(part + warp * Tuning::channels + 8 * j + lane % 4 * 2 + high)[middle] = mine;
  }
  hopper::named_barrier(1, Tuning::workers);
  for (int c = threadIdx.x; c < Tuning::channels; c += Tuning::workers) {
    if (tile.channel + c >= work.out) continue;
    float2 sum{0, 0};
    for (int w = 0; w < Tuning::workers / 32; ++w) {
      sum.x += part[w * Tuning::channels + c].x;
      sum.y += part[w * Tuning::channels + c].y;
    }
    const float mean = sum.x / static_cast<float>(rows);
    float* out = work.moments + int64_t(tile.index) * 2 * work.out + tile.channel + c;
    out[0] = base[c] + mean;
    out[work.out] = fmaxf(sum.y - sum.x * mean, 0);
  }
  hopper::named_barrier(1, Tuning::workers);  // the next tile may write base and part
}

template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void conv_finish(const ConvWork& work, const ConvTile& tile,
                                            const float (&sums)[Tuning::rows][32 * Tuning::columns], float* scratch) {
  store_tile<Tuning, Tuning::channels>(work.y, work.out, work.out, tile, [&](int i, int k) { return sums[i][k]; });
  if constexpr (Kind == ConvKind::plain)
    if (work.moments)
      conv_moments<Tuning>(work, tile, sums, scratch, reinterpret_cast<float2*>(scratch + Tuning::channels));
}

#endif

}  // namespace moecod::kernel::detail
