#pragma once
#include "moecod/kernel/conv_tile.cuh"

/// What becomes of a tile's sums, from the registers in which products of warpgroups leave them: lane l of a warp holds
/// rows l / 4 and l / 4 + 8 of the warp's sixteen and columns 8 j + 2 (l % 4) and the next.
namespace moecod::kernel::detail {

/// Shared memory for the moments of a tile: of each warp 16 rows of 32 channels, and mean and squares of all channels.
template <class Tuning>
struct MomentStage {
  static constexpr int warps = Tuning::workers / 32;
  static constexpr uint32_t patch = 16 * 64, bytes = warps * (patch + Tuning::columns * 64 * 8);
};

/// Bytes of a warp's sixteen rows of 64 results.
inline constexpr uint32_t warp_block = 16 * 128;

#if MOECOD_HOPPER_CODE

__device__ __forceinline__ uint32_t pack(float x, float y) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(x, y);
  return reinterpret_cast<const uint32_t&>(two);
}
__device__ __forceinline__ float2 unpack(uint32_t two) {
  return to_floats(reinterpret_cast<const __nv_bfloat162&>(two));
}

/// A warp's sixteen rows of 64 `Columns` columns, rounded, into blocks of 64, swizzled as TMA does, once the stores of what stood
/// there have read it. TMA may store them after.
template <int Columns>
__device__ __forceinline__ void stage_warp(uint8_t* blocks, const float* sums) {
  const int lane = threadIdx.x % 32;
  hopper::stores_read();
  __syncwarp();
#pragma unroll
  for (int b = 0; b < Columns; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint8_t* row = blocks + b * warp_block + (8 * half + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* two = sums + 32 * b + 4 * j + 2 * half;
        *reinterpret_cast<uint32_t*>(row + (j ^ lane / 4) * 16) = pack(two[0], two[1]);
      }
    }
  hopper::publish_stores();
  __syncwarp();
}

/// Lane q of each four, which has part q of four vectors, gets all parts of vector q.
__device__ __forceinline__ void to_vector_of_four(uint32_t (&part)[4]) {
  auto& [a, b, c, d] = part;
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t ab = __shfl_xor_sync(whole_warp, odd ? a : b, 1), cd = __shfl_xor_sync(whole_warp, odd ? c : d, 1);
  (odd ? a : b) = ab;
  (odd ? c : d) = cd;
  const uint32_t ac = __shfl_xor_sync(whole_warp, high ? a : c, 2), bd = __shfl_xor_sync(whole_warp, high ? b : d, 2);
  (high ? a : c) = ac;
  (high ? b : d) = bd;
}
__device__ __forceinline__ uint4 vector_of_four(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  uint32_t parts[] = {a, b, c, d};
  to_vector_of_four(parts);
  return {parts[0], parts[1], parts[2], parts[3]};
}

/// Sums of a warp's rows of two channels, about its first row, so that nothing cancels.
struct Moments {
  float2 about{0, 0}, sum{0, 0}, square{0, 0};
  __device__ __forceinline__ void add(float2 x) {
    x.x -= about.x;
    x.y -= about.y;
    sum.x += x.x;
    sum.y += x.y;
    square.x += x.x * x.x;
    square.y += x.y * x.y;
  }
};

/// The first of a warp's sixteen rows of part i of a tile.
template <class Tuning>
__device__ __forceinline__ int first_row(int warp, int i) {
  return 64 * (warp / 4 * Tuning::rows + i) + 16 * (warp % 4);
}

/// Mean and squares about the mean of each channel of the tile, from those of the warps.
template <class Tuning>
__device__ __forceinline__ void store_moments(const ConvWork& work, const ConvTile& tile, const float2* of_warps) {
  constexpr int warps = Tuning::workers / 32;
  const auto rows_of = [&](int warp) {
    int rows = 0;
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i) rows += min(max(tile.rows - first_row<Tuning>(warp, i), 0), 16);
    return static_cast<float>(rows);
  };
  hopper::named_barrier(1, Tuning::workers);
  for (int c = threadIdx.x; c < Tuning::channels; c += Tuning::workers) {
    if (tile.channel + c >= work.out) continue;
    float mean = 0, square = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w)
      if (const float rows = rows_of(w)) mean += rows * of_warps[w * 64 * Tuning::columns + c].x;
    mean /= static_cast<float>(tile.rows);
#pragma unroll
    for (int w = 0; w < warps; ++w)
      if (const float rows = rows_of(w)) {
        const float2 its = of_warps[w * 64 * Tuning::columns + c];
        square += its.y + rows * (its.x - mean) * (its.x - mean);
      }
    float* out = work.moments + int64_t(tile.index) * 2 * work.out + tile.channel + c;
    out[0] = mean;
    out[work.out] = square;
  }
  hopper::named_barrier(1, Tuning::workers);  // the next tile's take their place
}

/// Rounds the tile and stores it; with moments, those of the rounded values. 32 channels at a time, of which a lane
/// takes two over every other row of its warp.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void conv_finish(const ConvWork& work, const ConvTile& tile,
                                            const float (&sums)[Tuning::rows][32 * Tuning::columns], uint8_t* scratch) {
  using Stage = MomentStage<Tuning>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = tile.rows;
  const int channels = min(Tuning::channels, work.out - tile.channel);
  const bool moments = Kind == ConvKind::plain && work.moments;
  uint8_t* patch = scratch + warp * Stage::patch;
  auto* of_warps = reinterpret_cast<float2*>(scratch + Stage::warps * Stage::patch);
  __nv_bfloat16* y = work.y + int64_t(tile.begin) * work.out + tile.channel;
#pragma unroll
  for (int chunk = 0; chunk < (Tuning::channels + 31) / 32; ++chunk) {
    const int column = 32 * chunk + 8 * (lane % 4);
    Moments two;
    int counted = 0;
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i) {
      const int first = first_row<Tuning>(warp, i);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + 8 * half + lane / 4;
        const auto part = [&](int j) {
          const int k = 16 * chunk + 4 * j + 2 * half;
          return pack(sums[i][k], sums[i][k + 1]);
        };
        const uint4 vector = vector_of_four(part(0), part(1), part(2), part(3));
        if (row < rows && column < channels)
          *reinterpret_cast<uint4*>(y + int64_t(row) * work.out + column) = vector;
        if (moments) reinterpret_cast<uint4*>(patch)[32 * half + lane] = vector;
      }
      if (moments) {
        __syncwarp();
        const auto* of_lane = reinterpret_cast<const uint32_t*>(patch) + lane;  // rows of 16 words: even, then odd
        if (i == 0) two.about = unpack(reinterpret_cast<const uint32_t*>(patch)[lane % 16]);
        const int valid = min(max(rows - first, 0), 16);
        counted += valid;
#pragma unroll
        for (int r = 0; r < 8; ++r) {  // without branches, whose latencies would add up
          const bool counts = 2 * r + lane / 16 < valid;
          const float2 x = unpack(of_lane[32 * r]);
          two.add({counts ? x.x : two.about.x, counts ? x.y : two.about.y});
        }
        __syncwarp();
      }
    }
    if (moments) {
      two.sum.x += __shfl_xor_sync(whole_warp, two.sum.x, 16);
      two.sum.y += __shfl_xor_sync(whole_warp, two.sum.y, 16);
      two.square.x += __shfl_xor_sync(whole_warp, two.square.x, 16);
      two.square.y += __shfl_xor_sync(whole_warp, two.square.y, 16);
      if (lane < 16) {
        const float share = __fdividef(1, static_cast<float>(max(counted, 1)));
        const float2 mean{two.sum.x * share, two.sum.y * share};
        *reinterpret_cast<float4*>(of_warps + warp * 64 * Tuning::columns + 32 * chunk + 2 * lane) = {
            two.about.x + mean.x, fmaxf(two.square.x - two.sum.x * mean.x, 0), two.about.y + mean.y,
            fmaxf(two.square.y - two.sum.y * mean.y, 0)};
      }
    }
  }
  if (moments) store_moments<Tuning>(work, tile, of_warps);
}

/// A worker's part of a tile, rounded, through shared memory: its warp goes on while TMA stores what it left there.
template <class Tuning>
__device__ __forceinline__ void conv_leave(const CUtensorMap& map, const ConvWork& work, const ConvTile& tile,
                                           const float (&sums)[32 * Tuning::columns], uint8_t* results) {
  static_assert(Tuning::rows == 1 && Tuning::channels == 64 * Tuning::columns);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = tile.rows - 16 * warp;
  const int first = tile.begin + 16 * warp;
  results += warp * Tuning::columns * warp_block;
  stage_warp<Tuning::columns>(results, sums);
  if (rows >= 16) {
    if (lane == 0) {
#pragma unroll
      for (int b = 0; b < Tuning::columns; ++b)
        hopper::store_box(map, results + b * warp_block, tile.channel + 64 * b, 0, first);
      hopper::stores_commit();
    }
    return;
  }
  // The piece ends here: TMA would write into the next expert's rows.
  constexpr int vectors = Tuning::channels / 8;
  for (int i = lane; i < rows * vectors; i += 32) {
    const int row = i / vectors, vector = i % vectors, channel = tile.channel + 8 * vector;
    if (channel < work.out)
      *reinterpret_cast<uint4*>(work.y + int64_t(first + row) * work.out + channel) =
          *reinterpret_cast<const uint4*>(results + vector / 8 * warp_block + row * 128 + (vector % 8 ^ row % 8) * 16);
  }
}

#endif

}  // namespace moecod::kernel::detail
