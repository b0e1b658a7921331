#pragma once
#include "moecod/kernel/activation.cuh"
#include "moecod/kernel/conv_epilogue.cuh"

/// The gate of a SwiGLU expert, a = silu(g) u with [g, u] = h, in the epilogue of the product before it, and its
/// backward pass in that of the product that gives the gradient of a.
///
/// With short sums both move more bytes than the product itself. So tiles come and go through shared memory, by TMA, which
/// one thread of the loading warpgroup asks for: the workers go on with the next tile while the last is stored. A stage
/// holds blocks of 128 rows and 64 channels, swizzled as TMA does, of g, u and a in this order; where h is not kept, of a alone,
/// whatever the sums' length. With long sums the products have larger tiles instead, beside which no stage of g, u and a fits,
/// and registers go to and from global memory; there the gradient of a is rounded before its lanes exchange it.
namespace moecod::kernel::detail {

MOECOD_HOST_DEVICE constexpr bool is_gate(ConvKind kind) {
  return kind != ConvKind::plain && kind != ConvKind::transposed;
}

/// Whether the kind's tiles go through a stage in shared memory: `gated`, whose stage holds a alone, and products' tiles of at most
/// 128 columns, beside which one of g, u and a fits.
template <class Tuning>
MOECOD_HOST_DEVICE constexpr bool is_staged(ConvKind kind) {
  return kind == ConvKind::gated || (is_gate(kind) && Tuning::columns <= 2);
}

/// Whether the rows of the weights' tiles are loaded in such an order that a lane's sums are of eight neighbouring channels, for
/// which it would else exchange results with three others. Of the gates and of what they gate each, the product's column
/// 8 Columns j + 2 q + b is channel 8 q + 2 j + b (j < 4, b < 2).
template <class Tuning>
MOECOD_HOST_DEVICE constexpr bool has_vectors(ConvKind kind) {
  return kind == ConvKind::gated_kept && !is_staged<Tuning>(kind);
}

/// Of each 64 channels, so that some are loaded and stored while the workers are at others.
struct GateBarriers {
  static constexpr int blocks = 2;  // at most
  uint64_t ready[blocks];   // the stage may be written; with the backward pass, it holds h
  uint64_t staged[blocks];  // the workers have written it
};

/// What a kind holds in shared memory beside the products' tiles.
template <class Tuning, ConvKind Kind>
struct GateStage {
  static constexpr int blocks = is_gate_backward(Kind) ? Tuning::columns : Tuning::columns / 2;  // a matrix
  static_assert(blocks <= GateBarriers::blocks);
  static constexpr bool keeps = Kind != ConvKind::gated;  // has g and u
  static constexpr uint32_t block = 128 * 128, a_at = keeps ? 2 * blocks * block : 0, bytes = a_at + blocks * block;
};

#if MOECOD_HOPPER_CODE

/// A lane's rows of a tile of 128: one of the first eight of its warp's, and one of the others.
__device__ __forceinline__ int gate_row(int half) { return threadIdx.x / 32 * 16 + 8 * half + threadIdx.x % 32 / 4; }

/// The gate's backward pass of a lane's two rows of a tile.
template <ConvKind Kind>
struct GateBackward {
  __device__ __forceinline__ void start(const ConvWork&, const ConvTile&) {}
  __device__ __forceinline__ void operator()(int, float d, float g, float u, float& a, float& d_g, float& d_u) {
    SwiGlu::backward(d, g, u, a, d_g, d_u);
  }
  __device__ __forceinline__ void store(const ConvWork&, const ConvTile&, int) {}
};

/// The same where the rows count by weights: d_g, d_u and a by as much, and the gradients of the weights are sums of d a.
template <>
struct GateBackward<ConvKind::gate_backward_weighted> {
  float weight[2], gradient[2];

  /// Two reads, one after the other: before the products.
  __device__ __forceinline__ void start(const ConvWork& work, const ConvTile& tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool inside = gate_row(half) < tile.rows;
      weight[half] = inside ? work.weights[work.order[tile.begin + gate_row(half)]] : 0;
      gradient[half] = 0;
    }
  }
  __device__ __forceinline__ void operator()(int half, float d, float g, float u, float& a, float& d_g, float& d_u) {
    SwiGlu::backward(weight[half] * d, g, u, a, d_g, d_u);
    gradient[half] += d * a;
    a *= weight[half];
  }
  __device__ __forceinline__ void store(const ConvWork& work, const ConvTile& tile, int channels) {
    if (!work.partial) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      gradient[half] += __shfl_xor_sync(whole_warp, gradient[half], 1);
      gradient[half] += __shfl_xor_sync(whole_warp, gradient[half], 2);
      if (threadIdx.x % 4 == 0 && gate_row(half) < tile.rows)
        work.partial[tile.channel / channels * work.groups.items() + tile.begin + gate_row(half)] = gradient[half];
    }
  }
};

/// One thread's work: the loads of h and all stores.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void gate_move(const ConvMaps& maps, const ConvOrder& order, int rank, uint8_t* stage,
                                          GateBarriers& barriers) {
  using Stage = GateStage<Tuning, Kind>;
  const int tiles = order.count();
  const auto prepare = [&](const ConvTile& tile, int b) {
    if constexpr (is_gate_backward(Kind)) {
      hopper::barrier_expect(&barriers.ready[b], 2 * Stage::block);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        hopper::load_box(stage + (i / 2 * Stage::blocks + b) * Stage::block + i % 2 * Stage::block / 2, maps.h,
                         &barriers.ready[b], tile.channel + 64 * b, i / 2, tile.begin + i % 2 * 64);
    } else {
      hopper::barrier_arrive(&barriers.ready[b]);
    }
  };
  int number = blockIdx.x / 2;
  if (number >= tiles) return;
  ConvTile tile = order(number, rank);
#pragma unroll
  for (int b = 0; b < Stage::blocks; ++b) prepare(tile, b);
  for (uint32_t parity = 0;; parity ^= 1) {
    number += gridDim.x / 2;
    const ConvTile next = number < tiles ? order(number, rank) : tile;
#pragma unroll
    for (int b = 0; b < Stage::blocks; ++b) {
      hopper::barrier_wait(&barriers.staged[b], parity);
      if (tile.rows == Tuning::positions) {  // else the workers have stored it
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint8_t* from = stage + b * Stage::block + half * Stage::block / 2;
          const int channel = tile.channel + 64 * b, row = tile.begin + 64 * half;
          if constexpr (Stage::keeps) {
            hopper::store_box(maps.d_h, from, channel, 0, row);
            hopper::store_box(maps.d_h, from + Stage::blocks * Stage::block, channel, 1, row);
          }
          hopper::store_box(maps.y, from + Stage::a_at, channel, 0, row);
        }
        hopper::stores_commit();
        hopper::stores_read();
      }
      if (number < tiles) prepare(next, b);
    }
    if (number >= tiles) return;
    tile = next;
  }
}

/// A warpgroup's rows of 64 channels of a tile within which the piece ends: TMA would write into the next expert's. Other
/// warps read a row than wrote it.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void gate_store_rows(const ConvWork& work, const ConvTile& tile, const uint8_t* stage,
                                                int b) {
  using Stage = GateStage<Tuning, Kind>;
  const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128, first = 64 * warpgroup, n = work.out;
  hopper::named_barrier(1 + warpgroup, 128);
  for (int i = thread; i < 64 * 8; i += 128) {
    const int row = first + i / 8, chunk = i % 8, channel = tile.channel + 64 * b + 8 * chunk;
    if (row >= tile.rows || channel >= n) continue;
    const auto* from = reinterpret_cast<const uint4*>(stage + b * Stage::block + row * 128 + (chunk ^ row % 8) * 16);
    const int64_t at = int64_t(tile.begin + row) * n + channel, at_h = 2 * int64_t(tile.begin + row) * n + channel;
    if constexpr (Stage::keeps) {
      *reinterpret_cast<uint4*>(work.h + at_h) = from[0];
      *reinterpret_cast<uint4*>(work.h + at_h + n) = from[Stage::blocks * Stage::block / 16];
    }
    *reinterpret_cast<uint4*>(work.y + at) = from[Stage::a_at / 16];
  }
  hopper::named_barrier(1 + warpgroup, 128);
}

/// A worker's part of a tile.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void gate_finish(const ConvWork& work, const ConvTile& tile,
                                            const float (&sums)[Tuning::rows][32 * Tuning::columns], uint8_t* stage,
                                            GateBarriers& barriers, uint32_t parity, GateBackward<Kind>& backward) {
  using Stage = GateStage<Tuning, Kind>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int b = 0; b < Stage::blocks; ++b) {
    hopper::barrier_wait(&barriers.ready[b], parity);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint8_t* row = stage + b * Stage::block + gate_row(half) * 128 + lane % 4 * 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        uint8_t* here = row + (j ^ lane / 4) * 16;
        auto& g = *reinterpret_cast<uint32_t*>(here);
        auto& u = *reinterpret_cast<uint32_t*>(here + Stage::blocks * Stage::block);
        auto& a = *reinterpret_cast<uint32_t*>(here + Stage::a_at);
        const int k = 32 * b + 4 * j + 2 * half;
        const float x = sums[0][k], y = sums[0][k + 1];
        if constexpr (is_gate_backward(Kind)) {
          const float2 gs = unpack(g), us = unpack(u);
          float2 as, d_g, d_u;
          backward(half, x, gs.x, us.x, as.x, d_g.x, d_u.x);
          backward(half, y, gs.y, us.y, as.y, d_g.y, d_u.y);
          g = pack(d_g.x, d_g.y);
          u = pack(d_u.x, d_u.y);
          a = pack(as.x, as.y);
        } else {
          const float v = sums[0][32 * Stage::blocks + k], w = sums[0][32 * Stage::blocks + k + 1];
          if constexpr (Stage::keeps) {
            g = pack(x, y);
            u = pack(v, w);
          }
          a = pack(SwiGlu::forward(x, v), SwiGlu::forward(y, w));
        }
      }
    }
    if (tile.rows < Tuning::positions) gate_store_rows<Tuning, Kind>(work, tile, stage, b);
    hopper::publish_stores();
    __syncwarp();
    if (lane == 0) hopper::barrier_arrive(&barriers.staged[b]);
  }
  if constexpr (is_gate_backward(Kind)) backward.store(work, tile, 64 * Stage::blocks);
}

/// Stores what L2 may drop first: h and a are larger.
__device__ __forceinline__ void store(__nv_bfloat16* to, const uint32_t (&vector)[4]) {
  __stcs(reinterpret_cast<uint4*>(to), {vector[0], vector[1], vector[2], vector[3]});
}

/// Where a lane's vectors of eight channels of a and of g lie, of each of its two rows and every 32 channels; u is `out`
/// further than g.
struct GatePlaces {
  int64_t a[2], g[2];  // of the first 32 channels
  int left[2];         // channels from there that are inside
  __device__ __forceinline__ GatePlaces(const ConvWork& work, const ConvTile& tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = gate_row(half), channel = tile.channel + threadIdx.x % 4 * 8;
      left[half] = row < tile.rows ? work.out - channel : 0;
      a[half] = int64_t(tile.begin + row) * work.out + channel;
      g[half] = a[half] + int64_t(tile.begin + row) * work.out;
    }
  }
  /// Vectors of h, or of its gradient, and of a, `channel` further.
  __device__ __forceinline__ void store_all(const ConvWork& work, int half, int channel, const uint32_t (&of_g)[4],
                                            const uint32_t (&of_u)[4], const uint32_t (&of_a)[4]) const {
    if (channel >= left[half]) return;
    store(work.h + g[half] + channel, of_g);
    store(work.h + g[half] + work.out + channel, of_u);
    store(work.y + a[half] + channel, of_a);
  }
};

/// A worker's part of a tile of long sums: h and a, from registers (has_vectors).
template <class Tuning>
__device__ __forceinline__ void gate_finish_kept(const ConvWork& work, const ConvTile& tile,
                                                 const float (&sums)[Tuning::rows][32 * Tuning::columns]) {
  const GatePlaces places{work, tile};
#pragma unroll
  for (int i = 0; i < 2 * Tuning::columns; ++i) {
    const int channel = i / 2 * 32, half = i % 2;
    uint32_t g[4], u[4], a[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = 4 * (Tuning::columns * j + i / 2) + 2 * half, second = 16 * Tuning::columns + k;
      const float2 gs{sums[0][k], sums[0][k + 1]}, us{sums[0][second], sums[0][second + 1]};
      g[j] = pack(gs.x, gs.y);
      u[j] = pack(us.x, us.y);
      a[j] = pack(SwiGlu::forward(gs.x, us.x), SwiGlu::forward(gs.y, us.y));
    }
    places.store_all(work, half, channel, g, u, a);
  }
}

/// h as the backward pass of the gate reads it, a few vectors early.
template <class Tuning>
struct GateOperands {
  static constexpr int early = 4, all = 4 * Tuning::columns;
  const ConvWork& work;
  const ConvTile& tile;
  GatePlaces places;
  uint4 g[early]{}, u[early]{};  // zeros where nothing is loaded: they count in the weights' gradients, times zero

  __device__ __forceinline__ GateOperands(const ConvWork& work, const ConvTile& tile) : work(work), tile(tile), places(work, tile) {}

  __device__ __forceinline__ void load(int i) {
    const int channel = i / 2 * 32, half = i % 2;
    if (channel >= places.left[half]) return;
    g[i % early] = __ldcs(reinterpret_cast<const uint4*>(work.kept + places.g[half] + channel));
    u[i % early] = __ldcs(reinterpret_cast<const uint4*>(work.kept + places.g[half] + work.out + channel));
  }
  /// Before the last products have ended.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < early - 1; ++i) load(i);
  }
};

/// A worker's part of a tile of long sums, rounded, and the gate's backward pass, from registers.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void gate_finish_backward(const float (&sums)[Tuning::rows][32 * Tuning::columns],
                                                     GateOperands<Tuning>& operands, GateBackward<Kind>& backward) {
#pragma unroll
  for (int i = 0; i < operands.all; ++i) {
    const int channel = i / 2 * 32, half = i % 2;
    uint32_t d[4], d_g[4], d_u[4], a[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = 16 * (i / 2) + 4 * j + 2 * (i % 2);
      d[j] = pack(sums[0][k], sums[0][k + 1]);
    }
    to_vector_of_four(d);
    if (i + operands.early - 1 < operands.all) operands.load(i + operands.early - 1);
    const uint4 first = operands.g[i % operands.early], second = operands.u[i % operands.early];
    const uint32_t g[] = {first.x, first.y, first.z, first.w}, u[] = {second.x, second.y, second.z, second.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 ds = unpack(d[j]), gs = unpack(g[j]), us = unpack(u[j]);
      float2 as, d_gs, d_us;
      backward(i % 2, ds.x, gs.x, us.x, as.x, d_gs.x, d_us.x);
      backward(i % 2, ds.y, gs.y, us.y, as.y, d_gs.y, d_us.y);
      d_g[j] = pack(d_gs.x, d_gs.y);
      d_u[j] = pack(d_us.x, d_us.y);
      a[j] = pack(as.x, as.y);
    }
    operands.places.store_all(operands.work, half, channel, d_g, d_u, a);
  }
  backward.store(operands.work, operands.tile, Tuning::channels);
}

#endif

/// The gradient of each row's weight, of those of the columns of tiles, in their order.
static __global__ void __launch_bounds__(256)
    add_weight_parts(const float* partial, int parts, int64_t rows, const int32_t* order, float* d_weights) {
  const int64_t row = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (row >= rows) return;
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += partial[part * rows + row];
  d_weights[order[row]] = sum;
}

}  // namespace moecod::kernel::detail
