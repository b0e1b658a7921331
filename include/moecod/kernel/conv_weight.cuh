#pragma once
#include <algorithm>
#include <utility>

#include "moecod/kernel/conv_epilogue.cuh"
#include "moecod/kernel/gather_tile.cuh"

/// The gradient of a grouped convolution's weights.
///
/// For each expert a matrix product over its positions, d_weight [out, taps x in] = grad^T [out, positions] * x
/// [positions, taps x in], for compute capability 9.0. TMA brings 64 positions of both, x moved by the tap of each 64
/// columns; rows that are not sorted yet come by two warps (gather_tile.cuh). Both are read across. Positions behind the
/// piece's end belong to another expert and are zeroed in shared memory.
///
/// A block stays for many tiles, and its loads go on while it finishes one. An expert's positions are cut into pieces so
/// that there is work for all multiprocessors; an expert of one piece is rounded and stored at once (of rows, through shared
/// memory by TMA, which goes on while the next tile is at work), those of several through float32 sums that a second kernel
/// adds in their order. The tiles of the last turn, where they are too few for all blocks, are cut into parts once more, which
/// are added likewise. Nothing is atomic. Operations: 2 positions taps in out. Bytes: x and grad, d_weight, and the sums out
/// and in.
namespace moecod::kernel {

namespace detail {

/// The tile of a block: 64 channels out for each of its two warpgroups and 64 `Columns` of taps x in; or, with
/// `Shared`, the same 64 channels out for both and 64 `Columns` columns for each.
/// `RowsAlone`: positions are rows of a matrix, and x's map is one.
template <int Columns_, bool Shared_, bool RowsAlone_>
struct ConvWeightTuning {
  static constexpr int columns = Columns_;
  static constexpr bool shared = Shared_, rows_alone = RowsAlone_;
  static constexpr bool leaves = rows_alone && !shared && columns <= 4;  // results go through shared memory
  static constexpr int stages = leaves && columns == 4 ? 3 : 4;
  static constexpr int warpgroups = 2, workers = 128 * warpgroups, threads = workers + 128;
  static constexpr int grad_blocks = shared ? 1 : warpgroups, x_blocks = shared ? warpgroups * columns : columns;
  static constexpr uint32_t block = 64 * 128;  // bytes of 64 positions, 64 channels
  static constexpr uint32_t stage = (grad_blocks + x_blocks) * block;
  static constexpr int sums = 32 * columns, tile = workers * sums;  // numbers of a worker, and of a tile
  static constexpr uint32_t results = leaves ? workers / 32 * columns * warp_block : 0;  // bytes
  static constexpr uint32_t dynamic(int experts) { return stages * stage + results + 1024 + EvenPieceTable::bytes(experts); }
};

struct ConvWeightWork {
  Groups groups;  // each: positions out
  int in, out;
  int taps_right, taps, right, down;
  int low_right, low_down;
  int out_width;
  int piece;  // positions a piece, a multiple of 64
  int rows, columns;  // tiles
  int turn;           // multiprocessors: tiles at once
  bool parts;         // the last turn's tiles are cut into parts, and there are `turn` blocks; of even loads it is decided
  ConvWeight::Gathers gathers;
  const int32_t* order;  // of what is gathered, each row's slot
  int slots;             // a row
  const void* gathered;
  __nv_bfloat16* d_weight;
  float* partial;
  template <class Tuning>
  __device__ bool gathers_rows() const {
    return Tuning::rows_alone && gathers != ConvWeight::Gathers::none;
  }
  /// Whether a column's tiles follow each other, not a row's: those that share their part of the wider operand.
  __device__ bool by_column() const { return in > out; }
  __host__ __device__ int in_blocks() const { return (in + 63) / 64; }
  __host__ __device__ int blocks() const { return taps * in_blocks(); }  // of 64 columns
  __host__ __device__ int64_t matrix() const { return int64_t(out) * taps * in; }
  /// Numbers of the sums of pieces, in `partial`; behind them are those of parts of tiles.
  __host__ __device__ int64_t piece_sums() const {
    return groups.items() > piece ? 2 * groups.items() / piece * matrix() : 0;
  }
  template <class Tuning>
  int64_t all_sums() const {
    return piece_sums() + (parts ? int64_t(turn) * Tuning::tile : 0);
  }
};

/// Where the sums of a piece lie that is not its expert's only one. Such an expert has the positions of x > 1.5 pieces, and
/// x rounded is at most floor(2 x), so that 2 positions / work.piece matrices hold those of all experts.
__device__ __forceinline__ int64_t sums_of_piece(const ConvWeightWork& work, const Piece& piece, int64_t index) {
  return 2 * work.groups.each * work.groups.offsets[piece.expert] / work.piece + index - piece.first;
}

/// Who computes what: each turn's blocks a tile each; where there are two blocks and more for each tile of the last turn, they
/// compute as many parts of it.
struct ConvWeightTurns {
  int whole, last, parts;  // tiles that are computed whole, and those in so many parts
  __host__ __device__ ConvWeightTurns(const ConvWeightWork& work, int tiles) {
    last = work.parts && tiles % work.turn <= work.turn / 2 ? tiles % work.turn : 0;
    parts = last ? work.turn / last : 1;
    whole = tiles - last;
  }
  __device__ ConvWeightTurns(const ConvWeightWork& work, const EvenPieceTable& table)
      : ConvWeightTurns(work, table.pieces() * work.rows * work.columns) {}
  __device__ int count() const { return whole + last * parts; }
};

struct ConvWeightTile {
  Piece piece;      // of a part its positions alone
  int index;        // of the piece
  int channel;      // the first channel out
  int first_block;  // of 64 columns
  int part;         // the number of the part among all, or -1 for a whole tile
  __device__ int steps() const { return static_cast<int>((piece.end - piece.begin + 63) / 64); }
};

/// The tiles of a piece follow each other, so that its positions stay in L2; and of those the ones that share their part of the
/// wider operand, so that the narrower one stays.
template <class Tuning>
__device__ __forceinline__ ConvWeightTile conv_weight_tile(const EvenPieceTable& table, const ConvWeightWork& work,
                                                           const ConvWeightTurns& turns, int number) {
  ConvWeightTile tile;
  tile.part = number >= turns.whole ? number - turns.whole : -1;
  if (tile.part >= 0) number = turns.whole + tile.part / turns.parts;
  const int of_piece = number % (work.rows * work.columns);
  tile.index = number / (work.rows * work.columns);
  const int column = work.by_column() ? of_piece / work.rows : of_piece % work.columns;
  const int row = work.by_column() ? of_piece % work.rows : of_piece / work.columns;
  tile.channel = row * 64 * Tuning::grad_blocks;
  tile.first_block = column * Tuning::x_blocks;
  tile.piece = table.find(tile.index);
  if (tile.part >= 0) {
    const int steps = tile.steps(), part = tile.part % turns.parts;
    const auto from = [&](int i) { return tile.piece.begin + 64 * int64_t(steps * i / turns.parts); };
    const int64_t begin = from(part), end = min(from(part + 1), tile.piece.end);
    tile.piece.begin = begin;
    tile.piece.end = end;
  }
  return tile;
}

#if MOECOD_HOPPER_CODE
/// One thread's work: all loads of the block, as fast as it can issue them: what holds for all of them is a template's
/// argument.
template <class Tuning>
__device__ __forceinline__ void conv_weight_load(const CUtensorMap& x_map, const CUtensorMap& grad_map,
                                                 const ConvWeightWork& work, const EvenPieceTable& table, uint8_t* stages,
                                                 uint64_t* full, uint64_t* empty) {
  const int in_blocks = work.in_blocks();
  const ConvWeightTurns turns{work, table};
  const int height = static_cast<int>(work.groups.each / work.out_width);
  const bool gathers_x = Tuning::rows_alone && work.gathers == ConvWeight::Gathers::x;  // comes by conv_weight_gather
  const bool gathers_grad = Tuning::rows_alone && work.gathers == ConvWeight::Gathers::grad;
  hopper::Ring<Tuning::stages> ring;
  for (int number = blockIdx.x; number < turns.count(); number += gridDim.x) {
    const ConvWeightTile tile = conv_weight_tile<Tuning>(table, work, turns, number);
    const int blocks = min(work.blocks() - tile.first_block, Tuning::x_blocks);
    const int loads = (gathers_grad ? 0 : Tuning::grad_blocks) + (gathers_x ? 0 : blocks);
    // Divisions are slow: none in the loop over steps. Of each block: channel, right << 16, down << 24.
    unsigned source[Tuning::x_blocks];
#pragma unroll
    for (int i = 0; i < Tuning::x_blocks; ++i) {
      const int tap = (tile.first_block + i) / in_blocks, part = (tile.first_block + i) % in_blocks;
      source[i] = 64u * part | unsigned(tap % work.taps_right * work.right) << 16 |
                  unsigned(tap / work.taps_right * work.down) << 24;
    }
    auto position = static_cast<int>(tile.piece.begin), n = static_cast<int>(tile.piece.begin / work.groups.each);
    const auto at = static_cast<int>(tile.piece.begin % work.groups.each);
    int h = at / work.out_width, w = at % work.out_width;
    for (int step = tile.steps(); step > 0; --step) {
      uint8_t* to = stages + ring.stage * Tuning::stage;
      uint64_t* arrived = &full[ring.stage];
      hopper::barrier_wait(&empty[ring.stage], ring.parity ^ 1);
      hopper::barrier_expect(arrived, loads * Tuning::block);
#pragma unroll
      for (int i = 0; i < Tuning::grad_blocks; ++i)
        if (!gathers_grad)
          hopper::load_box(to + i * Tuning::block, grad_map, arrived, tile.channel + 64 * i, position);
      to += Tuning::grad_blocks * Tuning::block;
#pragma unroll
      for (int i = 0; i < Tuning::x_blocks; ++i) {
        const int channel = source[i] & 0xffff, right = source[i] >> 16 & 0xff, down = source[i] >> 24;
        if (i >= blocks || gathers_x) continue;
        if constexpr (Tuning::rows_alone)
          hopper::load_box(to + i * Tuning::block, x_map, arrived, channel, position);
        else
          hopper::load_columns(to + i * Tuning::block, x_map, arrived, channel, w + work.low_right, h + work.low_down, n,
                               right, down);
      }
      position += 64;
      if constexpr (!Tuning::rows_alone)
        for (w += 64; w >= work.out_width; w -= work.out_width)
          if (++h == height) {
            h = 0;
            ++n;
          }
      ring.next();
    }
  }
}

/// The work of one of two warps: the loads of x or of grad where its rows are gathered.
template <class Tuning>
__device__ __forceinline__ void conv_weight_gather(const ConvWeightWork& work, const EvenPieceTable& table, int warp,
                                                   uint8_t* stages, uint64_t* full, uint64_t* empty) {
  const bool of_x = work.gathers == ConvWeight::Gathers::x;
  if (of_x) stages += Tuning::grad_blocks * Tuning::block;
  const int vectors = (of_x ? work.in : work.out) / 8;
  const ConvWeightTurns turns{work, table};
  Gatherer<Tuning::stages, 32> gatherer(warp, full, empty);
  for (int number = blockIdx.x; number < turns.count(); number += gridDim.x) {
    const ConvWeightTile tile = conv_weight_tile<Tuning>(table, work, turns, number);
    const int blocks = of_x ? min(work.blocks() - tile.first_block, Tuning::x_blocks) : Tuning::grad_blocks;
    const int first = of_x ? 8 * tile.first_block : tile.channel / 8, left = vectors - first;
    const auto* from = static_cast<const uint4*>(work.gathered) + first;
    const auto rows = static_cast<int>(tile.piece.end - tile.piece.begin);
    const auto slot = [&](int row) {  // behind the piece's end what the workers replace by zeros
      return work.order[tile.piece.begin + min(row + 32 * warp + static_cast<int>(threadIdx.x) % 32, rows - 1)];
    };
    int next = rows > 0 ? slot(0) : 0;
    for (int row = 0; row < rows; row += 64) {
      gatherer.set_rows(from, {static_cast<uint32_t>(next / work.slots * vectors)});
      next = slot(row + 64);  // ahead
      uint8_t* to = stages + gatherer.begin() * Tuning::stage;
      [&]<int... Block>(std::integer_sequence<int, Block...>) {
        ((Block < blocks ? gatherer.template copy<Block>(to + Block * Tuning::block, left) : void()), ...);
      }(std::make_integer_sequence<int, Tuning::x_blocks>{});
      gatherer.end();
    }
  }
  gatherer.finish();
}

/// Where the part of a tile has its sums of 64 columns: eight vectors of each worker, `workers` vectors apart.
template <class Tuning>
__device__ __forceinline__ float4* sums_of_part(const ConvWeightWork& work, int part, int b) {
  return reinterpret_cast<float4*>(work.partial + work.piece_sums() + int64_t(part) * Tuning::tile) +
         b * 8 * Tuning::workers + threadIdx.x;
}

/// 64 columns of a tile from the registers of its workers, rounded where its expert has no other piece.
template <class Tuning>
__device__ __forceinline__ void conv_weight_finish(const ConvWeightWork& work, const ConvWeightTile& tile, int b,
                                                   const float* sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warpgroup = warp / 4;
  const int row = tile.channel + (Tuning::shared ? 0 : 64 * warpgroup) + 16 * (warp % 4) + lane / 4;
  const int64_t row_size = int64_t(work.taps) * work.in;
  const bool only = tile.piece.count == 1;
  const int64_t matrix = only ? tile.piece.expert : sums_of_piece(work, tile.piece, tile.index);
  const int block = tile.first_block + (Tuning::shared ? warpgroup * Tuning::columns : 0) + b;
  const int tap = block / work.in_blocks(), first = block % work.in_blocks() * 64;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = (matrix * work.out + row + 8 * half) * row_size + int64_t(tap) * work.in;
    const bool inside = block < work.blocks() && row + 8 * half < work.out;
    const auto two = [&](int j) { return float2{sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]}; };
    if (only) {
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        const auto packed = [&](int k) { return pack(two(j + k).x, two(j + k).y); };
        const uint4 vector = vector_of_four(packed(0), packed(1), packed(2), packed(3));
        const int in = first + 8 * j + 8 * (lane % 4);
        if (inside && in < work.in) *reinterpret_cast<uint4*>(work.d_weight + at + in) = vector;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int in = first + 8 * j + 2 * (lane % 4);
        if (inside && in < work.in) *reinterpret_cast<float2*>(work.partial + at + in) = two(j);
      }
    }
  }
}

/// A warp's part of a tile of an expert's only piece, through shared memory: the warp goes on while TMA stores it.
template <class Tuning>
__device__ __forceinline__ void conv_weight_leave(const CUtensorMap& map, const ConvWeightTile& tile,
                                                  const float (&sums)[Tuning::sums], uint8_t* results) {
  const int warp = threadIdx.x / 32;
  results += warp * Tuning::columns * warp_block;
  stage_warp<Tuning::columns>(results, sums);
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int b = 0; b < Tuning::columns; ++b)
      hopper::store_box(map, results + b * warp_block, 64 * (tile.first_block + b), tile.channel + 16 * warp, tile.piece.expert);
    hopper::stores_commit();
  }
}
#endif

template <class Tuning>
__global__ void __launch_bounds__(Tuning::threads, 1)
    conv_weight(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap grad_map,
                const __grid_constant__ CUtensorMap d_weight_map, const ConvWeightWork work) {
#if MOECOD_HOPPER_CODE
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[Tuning::stages], empty[Tuning::stages];
  uint8_t* stages = raw + (1024 - hopper::shared_address(raw) % 1024) % 1024;
  uint8_t* results = stages + Tuning::stages * Tuning::stage;
  const EvenPieceTable table{{reinterpret_cast<int32_t*>(results + Tuning::results), work.groups, work.piece}};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) table.fill();
  if (threadIdx.x == 32) {
    for (int i = 0; i < Tuning::stages; ++i) {
      hopper::barrier_init(&full[i], work.gathers_rows<Tuning>() ? 1 + gather_arrivals : 1);
      hopper::barrier_init(&empty[i], Tuning::workers / 32);
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  if (warp >= Tuning::workers / 32) {
    hopper::fewer_registers<40>();
    if (warp == Tuning::workers / 32 && lane == 0)
      conv_weight_load<Tuning>(x_map, grad_map, work, table, stages, full, empty);
    if (const int gatherer = warp - Tuning::workers / 32 - 2; work.gathers_rows<Tuning>() && gatherer >= 0)
      conv_weight_gather<Tuning>(work, table, gatherer, stages, full, empty);
  } else {
    hopper::more_registers<232>();
    const int warpgroup = warp / 4;
    const ConvWeightTurns turns{work, table};
    const auto release = [&](int stage) {
      if (lane == 0) hopper::barrier_arrive(&empty[stage]);
    };
    float sums[Tuning::sums] = {};
    hopper::Ring<Tuning::stages> ring;
    for (int number = blockIdx.x; number < turns.count(); number += gridDim.x) {
      const ConvWeightTile tile = conv_weight_tile<Tuning>(table, work, turns, number);
      hopper::settle(sums);
      int before = 0, left = static_cast<int>(tile.piece.end - tile.piece.begin);
      const int steps = tile.steps();
      for (int step = 0; step < steps; ++step, left -= 64) {
        hopper::barrier_wait(&full[ring.stage], ring.parity);
        if (work.gathers_rows<Tuning>()) hopper::publish_stores();
        uint8_t* here = stages + ring.stage * Tuning::stage;
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
          hopper::multiply<64 * Tuning::columns, true, true>(sums, hopper::across_k(grad + 2048 * k, Tuning::block),
                                                        hopper::across_k(x + 2048 * k, Tuning::block), Tuning::block,
                                                        step + k > 0);
        hopper::multiply_commit();
        hopper::multiply_wait<1>();
        if (step > 0) release(before);
        before = ring.stage;
        ring.next();
      }
      hopper::multiply_wait<0>();
      hopper::settle(sums);
      if (steps > 0) release(before);
      if (steps == 0) {  // a part of a tile of more parts than steps; as `else` it would make sums spill
#pragma unroll
        for (float& sum : sums) sum = 0;
      }
      if constexpr (Tuning::leaves)
        if (tile.part < 0 && tile.piece.count == 1) {
          conv_weight_leave<Tuning>(d_weight_map, tile, sums, results);
          continue;
        }
#pragma unroll
      for (int b = 0; b < Tuning::columns; ++b) {
        const float* of_columns = sums + 32 * b;
        if (tile.part < 0) {
          conv_weight_finish<Tuning>(work, tile, b, of_columns);
          continue;
        }
        float4* to = sums_of_part<Tuning>(work, tile.part, b);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          to[i * Tuning::workers] = {of_columns[4 * i], of_columns[4 * i + 1], of_columns[4 * i + 2], of_columns[4 * i + 3]};
      }
    }
    if constexpr (Tuning::leaves) hopper::stores_read();
  }
#endif
}

/// Adds the parts of 64 columns of a tile, in their order. A block has the threads of one that multiplies, with their sums.
template <class Tuning>
__global__ void __launch_bounds__(Tuning::workers) add_parts_of_tiles(const ConvWeightWork work) {
#if MOECOD_HOPPER_CODE
  extern __shared__ int32_t first[];
  const EvenPieceTable table{{first, work.groups, work.piece}};
  if (threadIdx.x < 32) table.fill();
  __syncthreads();
  const ConvWeightTurns turns{work, table};
  if (blockIdx.x >= turns.last) return;
  const ConvWeightTile tile = conv_weight_tile<Tuning>(table, work, turns, turns.whole + blockIdx.x * turns.parts);
  float sums[32] = {};
#pragma unroll 2
  for (int part = 0; part < turns.parts; ++part) {
    const float4* from = sums_of_part<Tuning>(work, tile.part + part, blockIdx.y);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 vector = from[i * Tuning::workers];
      sums[4 * i] += vector.x;
      sums[4 * i + 1] += vector.y;
      sums[4 * i + 2] += vector.z;
      sums[4 * i + 3] += vector.w;
    }
  }
  conv_weight_finish<Tuning>(work, tile, blockIdx.y, sums);
#endif
}

/// Adds the sums of an expert's pieces; writes zeros where it has none, nothing where it has one.
static __global__ void __launch_bounds__(256) add_pieces(const ConvWeightWork work) {
  extern __shared__ int32_t first[];
  const EvenPieceTable table{{first, work.groups, work.piece}};
  if (threadIdx.x < 32) table.fill();
  __syncthreads();
  const Piece piece = table.of(blockIdx.y);
  if (piece.count == 1) return;
  const int64_t size = work.matrix(), vectors = size / 4;
  const float* sums = piece.count > 1 ? work.partial + sums_of_piece(work, piece, piece.first) * size : nullptr;
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < vectors; i += int64_t(gridDim.x) * 256) {
    float4 sum{0, 0, 0, 0};
    for (int64_t p = 0; p < piece.count; ++p) {
      const float4 x = reinterpret_cast<const float4*>(sums + p * size)[i];
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
  work.gathers = a.gathers;
  work.order = a.order;
  work.slots = a.slots;
  work.gathered = a.gathers == ConvWeight::Gathers::x ? a.x : a.grad;
  return work;
}

/// Sets tiles, and pieces such that experts that have about evenly much have `pieces` each. No shorter ones than give two
/// tiles for each multiprocessor where one expert has everything: their sums would fill memory.
template <class Tuning>
void cut(ConvWeightWork& work, int processors, int pieces) {
  work.rows = (work.out + 64 * Tuning::grad_blocks - 1) / (64 * Tuning::grad_blocks);
  work.columns = (work.blocks() + Tuning::x_blocks - 1) / Tuning::x_blocks;
  const int64_t all = int64_t(work.rows) * work.columns, items = work.groups.items();
  const int64_t even = items / (pieces * work.groups.experts), least = items * all / (2 * processors);
  work.piece = static_cast<int>((std::clamp<int64_t>(std::max(even, least), 512, std::max<int64_t>(items, 512)) + 63) / 64 * 64);
}

/// Cycles, about, where experts have evenly much: whole turns of all steps, four more for start and end, the last one's parts,
/// and the sums of pieces and parts, out and in. Products run at three quarters of their peak.
template <class Tuning>
int64_t conv_weight_cost(const ConvWeightWork& work) {
  constexpr int64_t step = 346 * Tuning::columns + 40, launch = 4000;
  const int64_t experts = work.groups.experts, each = (work.groups.items() + experts - 1) / experts;
  const int64_t pieces = std::max<int64_t>((each + work.piece / 2 - 1) / work.piece, 1);  // as EvenPieceTable counts
  const int64_t tiles = experts * pieces * work.rows * work.columns, steps = (each / pieces + 63) / 64;
  const ConvWeightTurns turns{work, static_cast<int>(std::min<int64_t>(tiles, INT_MAX))};
  const int64_t last = turns.last ? (steps + turns.parts - 1) / turns.parts + 4 : 0;
  const int64_t of_pieces = pieces > 1 ? experts * pieces * work.matrix() : 0;
  const int64_t of_parts = int64_t(turns.last) * turns.parts * Tuning::tile;
  // The parts of few tiles are added by few blocks, of 64 bytes a cycle each.
  return ((turns.whole + work.turn - 1) / work.turn * (steps + 4) + last) * step + of_pieces * 8 / 700 +
         std::max<int64_t>(of_parts * 8 / 700, turns.parts * 512) + (work.parts ? launch : 0);
}

/// Calls f with the tuning, having cut the work: the cheapest of all, of as many pieces an expert as fill the device twice.
template <class F>
cudaError_t with_conv_weight_tuning(ConvWeightWork work, F&& f) {
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  int64_t least = INT64_MAX;
  cudaError_t (*best)(const ConvWeightWork&, F&) = nullptr;
  ConvWeightWork cheapest{};
  work.turn = processors;
  const auto consider = [&]<class Tuning>(Tuning) {
    cut<Tuning>(work, processors, 1);
    const int64_t tiles = int64_t(work.groups.experts) * work.rows * work.columns;
    const auto most = static_cast<int>(std::max<int64_t>(2 * processors / tiles + 1, 16));
    for (int pieces = 1, last = 0; pieces <= most; ++pieces) {
      cut<Tuning>(work, processors, pieces);
      if (work.piece == last) continue;
      last = work.piece;
      for (const bool parts : {false, true}) {
        work.parts = parts;
        const int64_t cost = conv_weight_cost<Tuning>(work);
        if (cost >= least) continue;
        least = cost;
        cheapest = work;
        best = [](const ConvWeightWork& work, F& f) { return f(Tuning{}, work); };
      }
    }
  };
  const auto consider_all = [&]<bool RowsAlone>(std::bool_constant<RowsAlone>) {
    if (work.out <= 64) {
      consider(ConvWeightTuning<3, true, RowsAlone>{});
    } else {
      consider(ConvWeightTuning<3, false, RowsAlone>{});
      consider(ConvWeightTuning<4, false, RowsAlone>{});
      consider(ConvWeightTuning<5, false, RowsAlone>{});
    }
  };
  work.taps == 1 ? consider_all(std::true_type{}) : consider_all(std::false_type{});
  return best(cheapest, f);
}

}  // namespace detail

/// The number of float32 that ConvWeight::partial must hold: sums of pieces and behind them of parts.
inline cudaError_t conv_weight_partial(const ConvWeight& a, int64_t* size) {
  return detail::with_conv_weight_tuning(detail::conv_weight_work(a), [&](auto tuning, const detail::ConvWeightWork& work) {
    *size = work.template all_sums<decltype(tuning)>();
    return cudaSuccess;
  });
}

namespace detail {

template <class Tuning>
cudaError_t launch_conv_weight(const ConvWeight& a, const ConvWeightWork& work, cudaStream_t stream) {
  const ConvShape& s = a.shape;
  if (work.groups.rows > 0) {
    int upper[2];
    for (int i = 0; i < 2; ++i) upper[i] = s.padding[i] - s.dilation[i] * (s.kernel[i] - 1);
    const int lower[] = {-s.padding[0], -s.padding[1]};
    if (const cudaError_t error = hopper::bind_context()) return error;
    CUtensorMap x_map, grad_map;
    const auto rows_map = [&](CUtensorMap* map, const void* data, int width, bool gathered) {
      return hopper::tiled_map<2>(map, data, {uint64_t(width), uint64_t(gathered ? 1 : work.groups.items())}, {64, 64});
    };
    if (const cudaError_t error =
            Tuning::rows_alone
                ? rows_map(&x_map, a.x, s.in, a.gathers == ConvWeight::Gathers::x)
                : hopper::columns_map(&x_map, a.x, a.groups.rows, s.height, s.width, s.in, lower, upper, 64))
      return error;
    if (const cudaError_t error = rows_map(&grad_map, a.grad, s.out, a.gathers == ConvWeight::Gathers::grad)) return error;
    CUtensorMap d_weight_map{};
    if constexpr (Tuning::leaves)
      if (const cudaError_t error = hopper::tiled_map<3>(
              &d_weight_map, a.d_weight, {uint64_t(s.in), uint64_t(s.out), uint64_t(a.groups.experts)}, {64, 16, 1}))
        return error;
    static_assert(Tuning::dynamic(max_experts) + 2 * Tuning::stages * sizeof(uint64_t) <= hopper::shared_memory);
    const auto kernel = conv_weight<Tuning>;
    const uint32_t dynamic = Tuning::dynamic(a.groups.experts);
    if (const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic))
      return error;
    const int64_t tiles = work.groups.pieces(work.piece) * work.rows * work.columns;
    const auto blocks = static_cast<unsigned>(work.parts ? work.turn : std::min<int64_t>(tiles, work.turn));
    kernel<<<blocks, Tuning::threads, dynamic, stream>>>(x_map, grad_map, d_weight_map, work);
    if (const cudaError_t error = cudaGetLastError()) return error;
    if (work.parts) {  // of at most half as many tiles as there are blocks
      add_parts_of_tiles<Tuning>
          <<<dim3(work.turn / 2, Tuning::columns), Tuning::workers, EvenPieceTable::bytes(a.groups.experts), stream>>>(work);
      if (const cudaError_t error = cudaGetLastError()) return error;
    }
  }
  const int64_t vectors = work.matrix() / 4;
  const auto each = static_cast<unsigned>(std::min<int64_t>((vectors + 255) / 256, 1 + 2048 / a.groups.experts));
  add_pieces<<<dim3(each, a.groups.experts), 256, EvenPieceTable::bytes(a.groups.experts), stream>>>(work);
  return cudaGetLastError();
}

}  // namespace detail

/// One to three launches.
inline cudaError_t conv_weight(const ConvWeight& a, cudaStream_t stream) {
  if (a.gathers != ConvWeight::Gathers::none && a.shape.taps() > 1) return cudaErrorInvalidValue;
  return detail::with_conv_weight_tuning(detail::conv_weight_work(a), [&](auto tuning, const detail::ConvWeightWork& work) {
    return detail::launch_conv_weight<decltype(tuning)>(a, work, stream);
  });
}

}  // namespace moecod::kernel
