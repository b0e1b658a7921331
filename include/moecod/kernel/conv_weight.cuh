#pragma once
#include <algorithm>

#include "moecod/kernel/hopper.cuh"
#include "moecod/kernel/piece_table.cuh"

/// The gradient of a grouped convolution's weights.
///
/// For each expert a matrix product over its positions, d_weight [out, taps x in] = grad^T [out, positions] * x
/// [positions, taps x in], for compute capability 9.0. TMA brings 64 positions of both, x moved by the tap of each 64
/// columns; both are read across. Positions behind the piece's end belong to another expert and are zeroed in shared
/// memory.
///
/// An expert's positions are cut into pieces so that there is work for all multiprocessors; an expert of one piece is
/// rounded and stored at once, those of several through float32 sums that a second kernel adds in their order. Nothing
/// is atomic. Operations: 2 positions taps in out. Bytes: x and grad, d_weight, and the sums out and in.
namespace moecod::kernel {

namespace detail {

/// The tile of a block: 64 channels out for each of its two warpgroups and 64 `Columns` of taps x in; or, with
/// `Shared`, the same 64 channels out for both and 64 `Columns` columns for each.
template <int Columns_, bool Shared_>
struct ConvWeightTuning {
  static constexpr int columns = Columns_, stages = 4;
  static constexpr bool shared = Shared_;
  static constexpr int warpgroups = 2, workers = 128 * warpgroups, threads = workers + 128;
  static constexpr int grad_blocks = shared ? 1 : warpgroups, x_blocks = shared ? warpgroups * columns : columns;
  static constexpr uint32_t block = 64 * 128;  // bytes of 64 positions, 64 channels
  static constexpr uint32_t stage = (grad_blocks + x_blocks) * block;
  static uint32_t dynamic(int experts) { return stages * stage + 1024 + (experts + 1) * 4; }
};

struct ConvWeightWork {
  Groups groups;  // each: positions out
  int in, out;
  int taps_right, taps, right, down;
  int low_right, low_down;
  int out_width;
  int piece;  // positions a piece, a multiple of 64
  __nv_bfloat16* d_weight;
  float* partial;
  __host__ __device__ int in_blocks() const { return (in + 63) / 64; }
  __host__ __device__ int blocks() const { return taps * in_blocks(); }  // of 64 columns
};

#if MOECOD_HOPPER_CODE
/// `RowsAlone`: positions are rows of a matrix, and x's map is one.
template <class Tuning, bool RowsAlone>
__device__ __forceinline__ void conv_weight_load(const CUtensorMap& x_map, const CUtensorMap& grad_map,
                                                 const ConvWeightWork& work, const Piece& piece, int channel,
                                                 int first_block, uint8_t* tiles, uint64_t* full, uint64_t* empty) {
  const int blocks = min(work.blocks() - first_block, Tuning::x_blocks), in_blocks = work.in_blocks();
  const auto steps = static_cast<int>((piece.end - piece.begin + 63) / 64);
  // Divisions are slow, and one thread does all of this: none in the loop. Of each block: channel, right << 16, down
  // << 24.
  unsigned source[Tuning::x_blocks];
#pragma unroll
  for (int i = 0; i < Tuning::x_blocks; ++i) {
    const int tap = (first_block + i) / in_blocks, part = (first_block + i) % in_blocks;
    source[i] = 64u * part | unsigned(tap % work.taps_right * work.right) << 16 |
                unsigned(tap / work.taps_right * work.down) << 24;
  }
  auto position = static_cast<int>(piece.begin), n = static_cast<int>(piece.begin / work.groups.each);
  const auto at = static_cast<int>(piece.begin % work.groups.each);
  const int height = static_cast<int>(work.groups.each / work.out_width);
  int h = at / work.out_width, w = at % work.out_width, stage = 0;
  uint32_t parity = 1;
  for (int step = 0; step < steps; ++step) {
    uint8_t* to = tiles + stage * Tuning::stage;
    hopper::barrier_wait(&empty[stage], parity);
    hopper::barrier_expect(&full[stage], (Tuning::grad_blocks + blocks) * Tuning::block);
#pragma unroll
    for (int i = 0; i < Tuning::grad_blocks; ++i)
      hopper::load_box(to + i * Tuning::block, grad_map, &full[stage], channel + 64 * i, position);
    to += Tuning::grad_blocks * Tuning::block;
#pragma unroll
    for (int i = 0; i < Tuning::x_blocks; ++i)
      if (i < blocks) {
        if constexpr (RowsAlone)
          hopper::load_box(to + i * Tuning::block, x_map, &full[stage], source[i] & 0xffff, position);
        else
          hopper::load_columns(to + i * Tuning::block, x_map, &full[stage], source[i] & 0xffff, w + work.low_right,
                               h + work.low_down, n, source[i] >> 16 & 0xff, source[i] >> 24);
      }
    position += 64;
    if constexpr (!RowsAlone)
      for (w += 64; w >= work.out_width; w -= work.out_width)
        if (++h == height) {
          h = 0;
          ++n;
        }
    if (++stage == Tuning::stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}
#endif

template <class Tuning, bool RowsAlone>
__global__ void __launch_bounds__(Tuning::threads, 1)
    conv_weight(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap grad_map,
                const ConvWeightWork work, int row_tiles, int column_tiles) {
#if MOECOD_HOPPER_CODE
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[Tuning::stages], empty[Tuning::stages];
  uint8_t* tiles = raw + (1024 - hopper::shared_address(raw) % 1024) % 1024;
  const int column_tile = static_cast<int>(blockIdx.x % column_tiles), rest = blockIdx.x / column_tiles;
  const int channel = rest % row_tiles * 64 * Tuning::grad_blocks, first_block = column_tile * Tuning::x_blocks;
  const int index = rest / row_tiles;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto* first = reinterpret_cast<int32_t*>(tiles + Tuning::stages * Tuning::stage);
  const PieceTable table{first, work.groups, work.piece};
  if (warp == 0) table.fill();
  if (threadIdx.x == 32) {
    for (int i = 0; i < Tuning::stages; ++i) {
      hopper::barrier_init(&full[i], 1);
      hopper::barrier_init(&empty[i], Tuning::workers / 32);
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  if (index >= table.pieces()) return;
  const Piece piece = table.find(index);
  if (warp >= Tuning::workers / 32) {
    hopper::fewer_registers<40>();
    if (warp == Tuning::workers / 32 && lane == 0)
      conv_weight_load<Tuning, RowsAlone>(x_map, grad_map, work, piece, channel, first_block, tiles, full, empty);
  } else {
    hopper::more_registers<232>();
    const int warpgroup = warp / 4;
    float sums[32 * Tuning::columns];
#pragma unroll
    for (int j = 0; j < 32 * Tuning::columns; ++j) sums[j] = 0;
    hopper::settle(sums);
    const auto steps = static_cast<int>((piece.end - piece.begin + 63) / 64);
    for (int step = 0; step < steps; ++step) {
      const int stage = step % Tuning::stages;
      hopper::barrier_wait(&full[stage], step / Tuning::stages & 1);
      uint8_t* here = tiles + stage * Tuning::stage;
      const auto left = static_cast<int>(piece.end - piece.begin - 64 * step);
      if (left < 64) {
        hopper::multiply_wait<0>();
        constexpr int each = Tuning::block / 16;  // vectors a block; a position has 8
        for (int i = threadIdx.x; i < (Tuning::grad_blocks + Tuning::x_blocks) * each; i += Tuning::workers)
          if (i % each / 8 >= left) reinterpret_cast<uint4*>(here)[i] = {0, 0, 0, 0};
        hopper::publish_stores();
        hopper::named_barrier(1, Tuning::workers);
      }
      const uint32_t grad = hopper::shared_address(here) + (Tuning::shared ? 0 : warpgroup) * Tuning::block;
      const uint32_t x = hopper::shared_address(here) + Tuning::grad_blocks * Tuning::block +
                         (Tuning::shared ? warpgroup : 0) * Tuning::columns * Tuning::block;
      hopper::multiply_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        hopper::multiply<Tuning::columns, true, true>(sums, hopper::across_k(grad + 2048 * k, Tuning::block),
                                                      hopper::across_k(x + 2048 * k, Tuning::block), Tuning::block, 1);
      hopper::multiply_commit();
      hopper::multiply_wait<1>();
      if (lane == 0 && step > 0) hopper::barrier_arrive(&empty[(step - 1) % Tuning::stages]);
    }
    hopper::multiply_wait<0>();
    hopper::settle(sums);

    const int row = channel + (Tuning::shared ? 0 : 64 * warpgroup) + 16 * (warp % 4) + lane / 4;
    const int64_t row_size = int64_t(work.taps) * work.in;
    const int64_t matrix = piece.count == 1 ? piece.expert : index;
#pragma unroll
    for (int b = 0; b < Tuning::columns; ++b) {
      const int block = first_block + (Tuning::shared ? warpgroup * Tuning::columns : 0) + b;
      const int tap = block / work.in_blocks(), in = block % work.in_blocks() * 64 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at = (matrix * work.out + row + 8 * half) * row_size + int64_t(tap) * work.in + in;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (block >= work.blocks() || row + 8 * half >= work.out || in + 8 * j >= work.in) continue;
          const float2 two{sums[32 * b + 4 * j + 2 * half], sums[32 * b + 4 * j + 2 * half + 1]};
          if (piece.count == 1)
            *reinterpret_cast<__nv_bfloat162*>(work.d_weight + at + 8 * j) = __floats2bfloat162_rn(two.x, two.y);
          else
            *reinterpret_cast<float2*>(work.partial + at + 8 * j) = two;
        }
      }
    }
  }
#endif
}

/// Adds the sums of an expert's pieces; writes zeros where it has none, nothing where it has one.
static __global__ void __launch_bounds__(256) add_pieces(const ConvWeightWork work) {
  extern __shared__ int32_t first[];
  const PieceTable table{first, work.groups, work.piece};
  if (threadIdx.x < 32) table.fill();
  __syncthreads();
  const Piece piece = table.of(blockIdx.y);
  if (piece.count == 1) return;
  const int64_t size = int64_t(work.out) * work.taps * work.in, vectors = size / 4;
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < vectors; i += int64_t(gridDim.x) * 256) {
    float4 sum{0, 0, 0, 0};
    for (int64_t p = 0; p < piece.count; ++p) {
      const float4 x = reinterpret_cast<const float4*>(work.partial + (piece.first + p) * size)[i];
      sum.x += x.x;
      sum.y += x.y;
      sum.z += x.z;
      sum.w += x.w;
    }
    auto* to = reinterpret_cast<__nv_bfloat162*>(work.d_weight + blockIdx.y * size) + 2 * i;
    to[0] = __floats2bfloat162_rn(sum.x, sum.y);
    to[1] = __floats2bfloat162_rn(sum.z, sum.w);
  }
}

inline ConvWeightWork conv_weight_work(const ConvWeight& a) {
  const ConvShape& s = a.shape;
  ConvWeightWork work{};
  work.groups = a.groups;
  work.groups.each = int64_t(s.out_height()) * s.out_width();
  work.in = s.in;
  work.out = s.out;
  work.taps = s.taps();
  work.taps_right = s.kernel[1];
  work.right = s.dilation[1];
  work.down = s.dilation[0];
  work.low_down = -s.padding[0];
  work.low_right = -s.padding[1];
  work.out_width = s.out_width();
  work.d_weight = static_cast<__nv_bfloat16*>(a.d_weight);
  work.partial = a.partial;
  return work;
}

struct ConvWeightTiles {
  int rows, columns;
  int piece;  // positions a piece
};

/// The tiles of all weights, and pieces such that there are `turns` tiles for each multiprocessor.
template <class Tuning>
ConvWeightTiles conv_weight_tiles(const ConvWeightWork& work, int processors, int turns) {
  ConvWeightTiles tiles{};
  tiles.rows = (work.out + 64 * Tuning::grad_blocks - 1) / (64 * Tuning::grad_blocks);
  tiles.columns = (work.blocks() + Tuning::x_blocks - 1) / Tuning::x_blocks;
  const int64_t all = int64_t(tiles.rows) * tiles.columns;
  const int64_t wanted = all < turns * processors ? turns * processors / all : 1;
  const int64_t size = (work.groups.items() + wanted - 1) / wanted;
  tiles.piece = static_cast<int>(((size < 1024 ? 1024 : size) + 63) / 64 * 64);
  return tiles;
}

/// Cycles, about, where experts have evenly much; products run at three quarters of their peak. Where experts are one
/// piece each, whole turns; else all steps, a quarter of a piece for what the last turn leaves idle, and the sums of the
/// pieces, out and in.
template <class Tuning>
int64_t conv_weight_cost(const ConvWeightWork& work, const ConvWeightTiles& tiles, int processors) {
  constexpr int64_t step = 346 * Tuning::columns;
  const int64_t experts = work.groups.experts, items = work.groups.items(), each = (items + experts - 1) / experts;
  const int64_t pieces = (each + tiles.piece - 1) / tiles.piece, all = int64_t(tiles.rows) * tiles.columns;
  if (pieces <= 1) return (experts * all + processors - 1) / processors * (each + 63) / 64 * step;
  const int64_t sums = experts * pieces * work.out * work.taps * work.in * 8;
  return (items / 64 * all / processors + tiles.piece / 256) * step + sums / 1000;
}

/// Calls f with the tuning and its tiles, the cheapest of three and one to three turns.
template <class F>
cudaError_t with_conv_weight_tuning(const ConvWeightWork& work, F&& f) {
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  if (work.out <= 64) {
    using Narrow = ConvWeightTuning<3, true>;
    return f(Narrow{}, conv_weight_tiles<Narrow>(work, processors, 3));
  }
  int64_t least = INT64_MAX;
  int columns = 0;
  ConvWeightTiles best{};
  const auto consider = [&]<class Tuning>(Tuning) {
    for (int turns = 1; turns <= 3; ++turns) {
      const ConvWeightTiles tiles = conv_weight_tiles<Tuning>(work, processors, turns);
      const int64_t cost = conv_weight_cost<Tuning>(work, tiles, processors);
      if (cost >= least) continue;
      least = cost;
      columns = Tuning::columns;
      best = tiles;
    }
  };
  consider(ConvWeightTuning<3, false>{});
  consider(ConvWeightTuning<4, false>{});
  consider(ConvWeightTuning<5, false>{});
  return columns == 3   ? f(ConvWeightTuning<3, false>{}, best)
         : columns == 4 ? f(ConvWeightTuning<4, false>{}, best)
                        : f(ConvWeightTuning<5, false>{}, best);
}

}  // namespace detail

/// The number of float32 that ConvWeight::partial must hold.
inline cudaError_t conv_weight_partial(const ConvWeight& a, int64_t* size) {
  const detail::ConvWeightWork work = detail::conv_weight_work(a);
  return detail::with_conv_weight_tuning(work, [&](auto, const detail::ConvWeightTiles& tiles) {
    *size = work.groups.pieces(tiles.piece) * work.out * work.taps * work.in;
    return cudaSuccess;
  });
}

namespace detail {

template <class Tuning>
cudaError_t launch_conv_weight(const ConvWeight& a, ConvWeightWork work, const ConvWeightTiles& tiles,
                               cudaStream_t stream) {
  const ConvShape& s = a.shape;
  const bool rows_alone = s.taps() == 1;
  work.piece = tiles.piece;
  if (work.groups.rows > 0) {
    int upper[2];
    for (int i = 0; i < 2; ++i) upper[i] = s.padding[i] - s.dilation[i] * (s.kernel[i] - 1);
    const int lower[] = {-s.padding[0], -s.padding[1]};
    CUtensorMap x_map, grad_map;
    if (const cudaError_t error =
            rows_alone
                ? hopper::tiled_map<2>(&x_map, a.x, {uint64_t(s.in), uint64_t(work.groups.items())}, {64, 64})
                : hopper::columns_map(&x_map, a.x, a.groups.rows, s.height, s.width, s.in, lower, upper, 64))
      return error;
    if (const cudaError_t error = hopper::tiled_map<2>(
            &grad_map, a.grad, {uint64_t(s.out), uint64_t(work.groups.items())}, {64, 64}))
      return error;
    const auto kernel = rows_alone ? conv_weight<Tuning, true> : conv_weight<Tuning, false>;
    const uint32_t dynamic = Tuning::dynamic(a.groups.experts);
    if (const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic))
      return error;
    const auto blocks = static_cast<unsigned>(work.groups.pieces(work.piece) * tiles.rows * tiles.columns);
    kernel<<<blocks, Tuning::threads, dynamic, stream>>>(x_map, grad_map, work, tiles.rows, tiles.columns);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  const int64_t size = int64_t(work.out) * work.taps * work.in;
  const auto each = static_cast<unsigned>(std::min<int64_t>((size / 4 + 255) / 256, 1 + 2048 / a.groups.experts));
  add_pieces<<<dim3(each, a.groups.experts), 256, (a.groups.experts + 1) * 4, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace detail

/// Two launches.
inline cudaError_t conv_weight(const ConvWeight& a, cudaStream_t stream) {
  const detail::ConvWeightWork work = detail::conv_weight_work(a);
  return detail::with_conv_weight_tuning(work, [&](auto tuning, const detail::ConvWeightTiles& tiles) {
    return detail::launch_conv_weight<decltype(tuning)>(a, work, tiles, stream);
  });
}

}  // namespace moecod::kernel
