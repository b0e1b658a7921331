#pragma once
#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "moecod/kernel/hopper.cuh"
#include "moecod/kernel/pieces.hpp"

/// Convolution of images sorted by expert, each with its expert's weights; also the gradient of its input.
///
/// An implicit matrix product, y [positions, out] = x [positions, taps x in] * weight^T, for compute capability 9.0. A
/// block computes a tile of consecutive positions of one expert (they may go over the images' ends) and 64 `Columns`
/// channels; which expert, it finds from the offsets. One thread has TMA bring, for each tap and 64 channels in, the
/// positions moved by the tap (im2col mode: what lies outside of an image is zero) and the expert's weights; two
/// warpgroups multiply. The gradient of the input is the same with the taps in the opposite order and the weights'
/// tiles read across.
///
/// The epilogue rounds the tile to bfloat16 in shared memory, stores it in rows, and takes mean and squares of each
/// channel over the tile (of the rounded values, about the tile's first row, so that nothing cancels), which batch
/// normalisation would else read it again for.
/// Operations: 2 positions taps in out. Bytes: x, weights, y once; the taps' rereads come from L2.
namespace moecod::kernel {

namespace detail {

/// The tile of a block: 128 `Rows` positions, 64 `Columns` channels, and how many steps are in flight.
template <int Rows_, int Columns_, int Stages_, int Blocks_>
struct ConvTuning {
  static constexpr int rows = Rows_, columns = Columns_, stages = Stages_, blocks = Blocks_;
  static constexpr int warpgroups = 2, threads = 128 * (warpgroups + 1), workers = 128 * warpgroups;
  static constexpr int loader_registers = blocks == 1 ? 40 : 24, worker_registers = blocks == 1 ? 232 : 104;
  static constexpr int positions = 128 * rows, channels = 64 * columns;
  static constexpr uint32_t row_block = 128 * 128, column_block = 64 * 128;  // bytes of 128 positions, 64 channels
  static constexpr uint32_t stage = rows * row_block + columns * column_block;
  static constexpr int pitch = channels + 8;  // elements a row of the rounded tile, without bank conflicts
  static constexpr int summers = workers / (channels / 2) > 0 ? workers / (channels / 2) : 1;  // threads a channel pair
  static constexpr uint32_t epilogue = positions * pitch * 2 + summers * channels * 8;
  static constexpr uint32_t dynamic = (stages * stage > epilogue ? stages * stage : epilogue) + 1024;  // for alignment
};

/// What a block needs to know beside the maps.
struct ConvWork {
  Groups groups;  // each: positions out
  int in, out;    // channels of x and y
  int taps_right, taps, right, down;  // taps in a row, in all; dilation
  int low_right, low_down;            // where the first tap of the first position lies
  int out_width;
  bool transposed, gated;
  __nv_bfloat16* y;
  float* moments;
};

#if MOECOD_HOPPER_CODE
template <class Tuning>
__device__ __forceinline__ void conv_load(const CUtensorMap& x_map, const CUtensorMap& weight_map, const ConvWork& work,
                                          const Piece& piece, int channel, uint8_t* tiles, uint64_t* full,
                                          uint64_t* empty) {
  int w[Tuning::rows], h[Tuning::rows], n[Tuning::rows];
#pragma unroll
  for (int i = 0; i < Tuning::rows; ++i) {
    const int64_t position = piece.begin + 128 * i;
    n[i] = static_cast<int>(position / work.groups.each);
    const int at = static_cast<int>(position % work.groups.each);
    h[i] = at / work.out_width + work.low_down;
    w[i] = at % work.out_width + work.low_right;
  }
  const int steps = (work.in + 63) / 64 * work.taps;
  int chunk = 0, tap = 0;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % Tuning::stages;
    hopper::barrier_wait(&empty[stage], (step / Tuning::stages & 1) ^ 1);
    hopper::barrier_expect(&full[stage], Tuning::stage);
    uint8_t* at = tiles + stage * Tuning::stage;
    const int right = tap % work.taps_right * work.right, down = tap / work.taps_right * work.down;
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i)
      hopper::load_columns(at + i * Tuning::row_block, x_map, &full[stage], 64 * chunk, w[i], h[i], n[i], right, down);
    at += Tuning::rows * Tuning::row_block;
    const int its_tap = work.transposed ? work.taps - 1 - tap : tap;
#pragma unroll
    for (int i = 0; i < Tuning::columns; ++i) {
      // Gates come first and then what they gate, the same columns of both.
      const int half = Tuning::columns / 2, other = !work.gated ? channel + 64 * i
                                                   : i < half   ? channel + 64 * i
                                                                : work.out + channel + 64 * (i - half);
      if (work.transposed)
        hopper::load_box(at + i * Tuning::column_block, weight_map, &full[stage], other, its_tap, 64 * chunk,
                         piece.expert);
      else
        hopper::load_box(at + i * Tuning::column_block, weight_map, &full[stage], 64 * chunk, its_tap, other,
                         piece.expert);
    }
    if (++tap == work.taps) {
      tap = 0;
      ++chunk;
    }
  }
}

/// The rounded tile, [positions][pitch], to y, in vectors of 16 bytes.
template <class Tuning, int Channels>
__device__ __forceinline__ void conv_store(const ConvWork& work, const Piece& piece, int channel,
                                           const __nv_bfloat16* tile) {
  constexpr int vectors = Channels / 8;
  const int rows = static_cast<int>(piece.end - piece.begin);
  __nv_bfloat16* y = work.y + piece.begin * work.out + channel;
  for (int i = threadIdx.x; i < rows * vectors; i += Tuning::workers) {
    const int row = i / vectors, c = i % vectors * 8;
    if (channel + c < work.out)
      *reinterpret_cast<uint4*>(y + int64_t(row) * work.out + c) =
          *reinterpret_cast<const uint4*>(tile + row * Tuning::pitch + c);
  }
}

/// Mean and squares about the mean of each channel of the rounded tile.
template <class Tuning>
__device__ __forceinline__ void conv_moments(const ConvWork& work, const Piece& piece, int64_t index, int channel,
                                             const __nv_bfloat16* tile, float2* part) {
  constexpr int pairs = Tuning::channels / 2;
  const int rows = static_cast<int>(piece.end - piece.begin);
  for (int i = threadIdx.x; i < pairs * Tuning::summers; i += Tuning::workers) {
    const int c = i % pairs * 2, group = i / pairs;
    const float2 base = to_floats(*reinterpret_cast<const __nv_bfloat162*>(tile + c));
    float2 first{0, 0}, second{0, 0};  // sum, sum of squares
    for (int row = group; row < rows; row += Tuning::summers) {
      float2 x = to_floats(*reinterpret_cast<const __nv_bfloat162*>(tile + row * Tuning::pitch + c));
      x.x -= base.x;
      x.y -= base.y;
      first.x += x.x;
      first.y += x.x * x.x;
      second.x += x.y;
      second.y += x.y * x.y;
    }
    part[group * Tuning::channels + c] = first;
    part[group * Tuning::channels + c + 1] = second;
  }
  hopper::named_barrier(1, Tuning::workers);
  for (int c = threadIdx.x; c < Tuning::channels; c += Tuning::workers) {
    if (channel + c >= work.out) continue;
    float2 sum{0, 0};
    for (int group = 0; group < Tuning::summers; ++group) {
      sum.x += part[group * Tuning::channels + c].x;
      sum.y += part[group * Tuning::channels + c].y;
    }
    const float mean = sum.x / static_cast<float>(rows);
    float* out = work.moments + index * 2 * work.out + channel + c;
    out[0] = to_float(tile[c]) + mean;
    out[work.out] = fmaxf(sum.y - sum.x * mean, 0);
  }
}
#endif

/// What the weights' columns become: themselves; the same with the weights' tiles read across; or, with columns in
/// pairs, silu(first) * second.
enum class ConvKind { plain, transposed, gated };

template <class Tuning, ConvKind Kind>
__global__ void __launch_bounds__(Tuning::threads, Tuning::blocks)
    conv(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
         const ConvWork work, int column_tiles) {
#if MOECOD_HOPPER_CODE
  constexpr bool Transposed = Kind == ConvKind::transposed;
  constexpr int channels = Kind == ConvKind::gated ? Tuning::channels / 2 : Tuning::channels;  // of y
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[Tuning::stages], empty[Tuning::stages];
  __shared__ Piece piece;
  uint8_t* tiles = raw + (1024 - hopper::shared_address(raw) % 1024) % 1024;
  const int64_t index = blockIdx.x / column_tiles;
  const int channel = static_cast<int>(blockIdx.x % column_tiles) * channels;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    piece = find_piece(work.groups.offsets, work.groups.experts, work.groups.each, Tuning::positions, index);
    for (int i = 0; i < Tuning::stages; ++i) {
      hopper::barrier_init(&full[i], 1);
      hopper::barrier_init(&empty[i], Tuning::workers / 32);
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  if (piece.expert < 0) return;
  if (warp >= Tuning::workers / 32) {
    hopper::fewer_registers<Tuning::loader_registers>();
    if (warp == Tuning::workers / 32 && lane == 0)
      conv_load<Tuning>(x_map, weight_map, work, piece, channel, tiles, full, empty);
  } else {
    hopper::more_registers<Tuning::worker_registers>();
    const int warpgroup = warp / 4;
    float sums[Tuning::rows][32 * Tuning::columns];
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i) {
#pragma unroll
      for (int j = 0; j < 32 * Tuning::columns; ++j) sums[i][j] = 0;
      hopper::settle(sums[i]);
    }
    const int steps = (work.in + 63) / 64 * work.taps;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % Tuning::stages;
      hopper::barrier_wait(&full[stage], step / Tuning::stages & 1);
      const uint32_t at = hopper::shared_address(tiles) + stage * Tuning::stage;
      const uint32_t x = at + warpgroup * Tuning::rows * Tuning::row_block / 2;
      const uint32_t weight = at + Tuning::rows * Tuning::row_block;
      hopper::multiply_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint64_t b = Transposed ? hopper::across_k(weight + 2048 * k, Tuning::column_block)
                                      : hopper::along_k(weight + 32 * k);
#pragma unroll
        for (int i = 0; i < Tuning::rows; ++i)
          hopper::multiply<Tuning::columns, false, Transposed>(
              sums[i], hopper::along_k(x + i * Tuning::row_block / 2 + 32 * k), b, Tuning::column_block);
      }
      hopper::multiply_commit();
      hopper::multiply_wait<1>();
      if (lane == 0 && step > 0) hopper::barrier_arrive(&empty[(step - 1) % Tuning::stages]);
    }
    hopper::multiply_wait<0>();
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i) hopper::settle(sums[i]);
    hopper::named_barrier(1, Tuning::workers);  // the tiles have been read; the rounded one takes their place

    auto* tile = reinterpret_cast<__nv_bfloat16*>(tiles);
#pragma unroll
    for (int i = 0; i < Tuning::rows; ++i) {
      const int row = 64 * (warpgroup * Tuning::rows + i) + 16 * (warp % 4) + lane / 4;
      __nv_bfloat16* to = tile + row * Tuning::pitch + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < channels / 8; ++j) {
        float value[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          value[c] = sums[i][4 * j + c];
          if constexpr (Kind == ConvKind::gated)
            value[c] = __fdividef(value[c], 1 + __expf(-value[c])) * sums[i][channels / 2 + 4 * j + c];
        }
        *reinterpret_cast<__nv_bfloat162*>(to + 8 * j) = __floats2bfloat162_rn(value[0], value[1]);
        *reinterpret_cast<__nv_bfloat162*>(to + 8 * Tuning::pitch + 8 * j) = __floats2bfloat162_rn(value[2], value[3]);
      }
    }
    hopper::named_barrier(1, Tuning::workers);
    conv_store<Tuning, channels>(work, piece, channel, tile);
    if (work.moments)
      conv_moments<Tuning>(work, piece, index, channel, tile,
                           reinterpret_cast<float2*>(tiles + Tuning::positions * Tuning::pitch * 2));
  }
#endif
}

/// What a tile costs a convolution: turns of the device, times the bytes a step brings, which bound it (from L2).
template <class Tuning>
int64_t conv_cost(const Groups& groups, int channels, int processors) {
  const int64_t tiles = groups.pieces(Tuning::positions) * ((channels + Tuning::channels - 1) / Tuning::channels);
  const int64_t at_once = int64_t(processors) * Tuning::blocks;
  return (tiles + at_once - 1) / at_once * Tuning::blocks * Tuning::stage;
}

/// Calls f with the tile for a convolution to so many channels, the cheapest of four.
template <class F>
auto with_conv_tuning(const Groups& groups, int channels, F&& f) {
  using Tunings =
      std::tuple<ConvTuning<2, 1, 2, 2>, ConvTuning<2, 2, 4, 1>, ConvTuning<1, 4, 4, 1>, ConvTuning<1, 5, 4, 1>>;
  int processors = 0;
  if (multiprocessors(&processors) != cudaSuccess) processors = 1;
  const auto cost = [&]<std::size_t... I>(std::index_sequence<I...>) {
    return std::array{conv_cost<std::tuple_element_t<I, Tunings>>(groups, channels, processors)...};
  }(std::make_index_sequence<std::tuple_size_v<Tunings>>{});
  const auto best = std::min_element(cost.begin(), cost.end()) - cost.begin();
  return best == 0   ? f(std::tuple_element_t<0, Tunings>{})
         : best == 1 ? f(std::tuple_element_t<1, Tunings>{})
         : best == 2 ? f(std::tuple_element_t<2, Tunings>{})
                     : f(std::tuple_element_t<3, Tunings>{});
}

/// Positions of an image of y.
inline int64_t conv_positions(const Conv& a) {
  const ConvShape& s = a.shape;
  return a.transposed ? int64_t(s.height) * s.width : int64_t(s.out_height()) * s.out_width();
}

/// A convolution by a given tile.
template <class Tuning, bool Gated = false>
cudaError_t launch_conv(const Conv& a, cudaStream_t stream) {
  const ConvShape& s = a.shape;
  ConvWork work{};
  work.groups = a.groups;
  work.groups.each = conv_positions(a);
  work.in = a.transposed ? s.out : s.in;
  work.out = a.transposed ? s.in : Gated ? s.out / 2 : s.out;
  work.taps = s.taps();
  work.taps_right = s.kernel[1];
  work.right = s.dilation[1];
  work.down = s.dilation[0];
  work.out_width = a.transposed ? s.width : s.out_width();
  work.transposed = a.transposed;
  work.gated = Gated;
  work.y = static_cast<__nv_bfloat16*>(a.y);
  work.moments = a.moments;
  int lower[2], upper[2];
  for (int i = 0; i < 2; ++i) {
    const int reach = s.dilation[i] * (s.kernel[i] - 1), padding = a.transposed ? reach - s.padding[i] : s.padding[i];
    lower[i] = -padding;
    upper[i] = padding - reach;
  }
  work.low_down = lower[0];
  work.low_right = lower[1];
  CUtensorMap x_map, weight_map;
  if (const cudaError_t error =
          hopper::columns_map(&x_map, a.x, a.groups.rows, a.transposed ? s.out_height() : s.height,
                              a.transposed ? s.out_width() : s.width, work.in, lower, upper, 128))
    return error;
  if (const cudaError_t error = hopper::tiled_map<4>(
          &weight_map, a.weight,
          {uint64_t(s.in), uint64_t(s.taps()), uint64_t(s.out), uint64_t(a.groups.experts)}, {64, 1, 64, 1}))
    return error;
  auto kernel = conv<Tuning, Gated ? ConvKind::gated : ConvKind::plain>;
  if constexpr (!Gated) {
    if (a.transposed) kernel = conv<Tuning, ConvKind::transposed>;
  }
  if (const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize, Tuning::dynamic))
    return error;
  const int channels = Gated ? Tuning::channels / 2 : Tuning::channels;
  const int column_tiles = (work.out + channels - 1) / channels;
  const auto blocks = static_cast<unsigned>(work.groups.pieces(Tuning::positions) * column_tiles);
  kernel<<<blocks, Tuning::threads, Tuning::dynamic, stream>>>(x_map, weight_map, work, column_tiles);
  return cudaGetLastError();
}

}  // namespace detail

/// Whether conv and conv_weight take the shape, on this device.
inline bool conv_takes(const ConvShape& s) {
  bool takes = s.in % 8 == 0 && s.out % 8 == 0 && s.in > 0 && s.out > 0 && s.out_height() > 0 && s.out_width() > 0;
  for (int i = 0; i < 2; ++i) {
    const int reach = s.dilation[i] * (s.kernel[i] - 1);
    takes = takes && reach <= 127 && s.padding[i] >= 0 && s.padding[i] <= reach;  // what a map's corners can say
  }
  return takes && hopper::is_hopper();
}

/// Positions over which Conv::moments are taken, of y with so many channels; groups.each: positions of an image of y.
inline int conv_piece(const Groups& groups, int channels) {
  return detail::with_conv_tuning(groups, channels, [](auto tuning) { return decltype(tuning)::positions; });
}

/// One launch.
inline cudaError_t conv(const Conv& a, cudaStream_t stream) {
  if (a.groups.rows == 0) return cudaSuccess;
  if (a.gated) return detail::launch_conv<detail::ConvTuning<1, 4, 4, 1>, true>(a, stream);
  Groups out = a.groups;
  out.each = detail::conv_positions(a);
  return detail::with_conv_tuning(out, a.transposed ? a.shape.in : a.shape.out, [&](auto tuning) {
    return detail::launch_conv<decltype(tuning)>(a, stream);
  });
}

}  // namespace moecod::kernel
