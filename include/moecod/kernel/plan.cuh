#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Plan: used slots sorted by expert, ties by slot.
///
/// Every block owns a contiguous chunk of the slots. One kernel counts the experts of each chunk; the other sums the
/// counts of the chunks before and of the experts below, which tells where the chunk's first slot of each expert goes,
/// and then places its slots, a tile at a time: ranks within a warp, sums over the warps, and the tile sorted in shared
/// memory, so that `order` is written in runs. Who shares a lane's expert is found by one ballot for each bit of the
/// expert's index, so the cost does not depend on the load. Counts are sums of integers, so the order in which they were
/// added does not show; nothing else is atomic.
/// Up to one tile this is one launch, else two, or three with more than 32 experts, whose counts a kernel of its own sums.
/// Bytes: slots in twice (the second time mostly from L2), order and position out once.
namespace moecod::kernel {

namespace detail {

struct PlanTuning {
  static constexpr int warps = 16;  // a block
  static constexpr int threads = 32 * warps;
  static constexpr int scan_threads = 128;
  static constexpr int batches = 8;  // of 32 slots, a warp and tile
  static constexpr int tile = threads * batches;
  static constexpr int blocks = 4;  // a multiprocessor, which bounds the registers
  static constexpr int bounded = resident<threads, blocks>;
  static constexpr int direct = 32;  // experts whose counts every block sums by itself
};

struct PlanShape {
  int blocks;
  int chunk;  // slots a block, a multiple of the threads
};

inline cudaError_t plan_shape(int64_t items, PlanShape* shape) {
  int limit = 0;
  if (const cudaError_t error = multiprocessors(&limit)) return error;
  limit *= PlanTuning::blocks;
  constexpr int64_t threads = PlanTuning::threads;
  const int64_t share = items <= PlanTuning::tile ? items : (items + limit - 1) / limit;
  const int64_t chunk = (share + threads - 1) / threads * threads;
  shape->chunk = static_cast<int>(chunk);
  shape->blocks = static_cast<int>((items + chunk - 1) / chunk);
  return cudaSuccess;
}

/// One bit of the experts of a warp, as a mask of lanes, for each bit; and the lanes that are used.
template <int Bits>
struct Ballots {
  unsigned used, bit[Bits];
  __device__ Ballots(int expert, int num_experts)
      : used(__ballot_sync(whole_warp, unsigned(expert) < unsigned(num_experts))) {
#pragma unroll
    for (int i = 0; i < Bits; ++i) bit[i] = __ballot_sync(whole_warp, expert >> i & 1);
  }
  /// The used lanes whose expert is `expert`.
  __device__ unsigned lanes_of(int expert) const {
    unsigned lanes = used;
#pragma unroll
    for (int i = 0; i < Bits; ++i) lanes &= ~(bit[i] ^ unsigned(int(unsigned(expert) << (31 - i)) >> 31));
    return lanes;
  }
};

/// The sum over this lane and the lower ones of its group of `Lanes`.
template <int Lanes>
__device__ __forceinline__ int sum_up_to(int x) {
  const int lane = threadIdx.x % Lanes;
#pragma unroll
  for (int offset = 1; offset < Lanes; offset *= 2) {
    const int other = __shfl_up_sync(whole_warp, x, offset, Lanes);
    if (lane >= offset) x += other;
  }
  return x;
}

/// begin[e] <- sum of totals below e. Called by one whole warp.
template <int Experts>
__device__ __forceinline__ void scan_experts(const int* total, int* begin) {
  const int lane = threadIdx.x % 32;
  int carry = 0;
#pragma unroll
  for (int first = 0; first < Experts; first += 32) {
    const int e = first + lane;
    const int own = e < Experts ? total[e] : 0;
    const int sum = sum_up_to<32>(own);
    if (e < Experts) begin[e] = carry + sum - own;
    carry += __shfl_sync(whole_warp, sum, 31);
  }
}

/// Shared memory of the placing kernel, for experts padded to a power of two.
template <int Experts>
struct PlanShared {
  uint16_t of_warp[PlanTuning::warps][Experts + 2];  // slots of an expert in a warp, then in the warps before; padded
  int total[Experts];                                // slots of an expert in this tile
  int begin[Experts];                                // where an expert begins in the sorted tile
  int next[Experts];                                 // where its next slot goes in the whole order
  int shift[Experts];                                // from a place in the sorted tile to the place in the whole order
  unsigned sorted[PlanTuning::tile];                 // expert << 16 | slot of the tile
};

/// Places the slots [tile, tile + size) and moves `next` on. `alone`: the tile is all there is.
template <int Bits>
__device__ __forceinline__ void place_tile(const Plan& a, int64_t tile, int size, bool alone,
                                           PlanShared<1 << Bits>& shared) {
  constexpr int experts = 1 << Bits, warps = PlanTuning::warps, batches = PlanTuning::batches;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned lower = (1u << lane) - 1;
  const int per_warp = (size + warps - 1) / warps;  // a multiple of 32, but for the last tile
  const int rounds = (per_warp + 31) / 32, begin = warp * rounds * 32;

  int code[batches];  // the expert; then expert << 16 | rank in the warp; -1: unused
#pragma unroll
  for (int u = 0; u < batches; ++u) {
    const int at = begin + 32 * u + lane;
    code[u] = u < rounds && at < size ? a.experts[tile + at] : -1;
  }
  uint16_t* count = shared.of_warp[warp];
  for (int e = lane; e < experts; e += 32) count[e] = 0;
  __syncwarp();
#pragma unroll
  for (int u = 0; u < batches; ++u) {
    if (u >= rounds) break;
    const int e = code[u];
    const Ballots<Bits> ballots(e, a.num_experts);
    const bool used = ballots.used >> lane & 1;
    // The hardware's match takes a turn for each different expert, a ballot one for each bit of its index.
    const unsigned peers = experts <= 8 ? __match_any_sync(whole_warp, used ? e : -1) : ballots.lanes_of(e);
    const unsigned before = used ? count[e] : 0, rank = __popc(peers & lower);
    __syncwarp();
    if (used && rank == 0) count[e] = static_cast<uint16_t>(before + __popc(peers));
    __syncwarp();
    code[u] = used ? e << 16 | static_cast<int>(before + rank) : -1;
  }
  __syncthreads();

  for (int pair = 2 * warp; pair < experts; pair += 2 * warps) {  // half a warp an expert, a lane for each warp
    const int e = pair + lane / warps;
    const int own = shared.of_warp[lane % warps][e], sum = sum_up_to<warps>(own);
    shared.of_warp[lane % warps][e] = static_cast<uint16_t>(sum - own);
    if (lane % warps == warps - 1) shared.total[e] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    scan_experts<experts>(shared.total, shared.begin);
    for (int e = lane; e < experts; e += 32) {
      const int to = alone ? shared.begin[e] : shared.next[e];
      shared.shift[e] = to - shared.begin[e];
      shared.next[e] = to + shared.total[e];
    }
  }
  __syncthreads();

#pragma unroll
  for (int u = 0; u < batches; ++u) {
    const int at = begin + 32 * u + lane, e = code[u] >> 16;
    if (u >= rounds || at >= size) break;
    int to = -1;
    if (e >= 0) {
      const int local = shared.begin[e] + count[e] + (code[u] & 0xffff);
      shared.sorted[local] = unsigned(e) << 16 | unsigned(at);
      to = local + shared.shift[e];
    }
    a.position[tile + at] = to;
  }
  __syncthreads();
  const int used = shared.begin[experts - 1] + shared.total[experts - 1];
  for (int i = threadIdx.x; i < used; i += PlanTuning::threads) {
    const unsigned code = shared.sorted[i];
    const int to = i + shared.shift[code >> 16];
    if (to < a.assignments) a.order[to] = static_cast<int32_t>(tile) + static_cast<int32_t>(code & 0xffff);
  }
}

__device__ __forceinline__ int tile_size(const Plan& a, int64_t tile) {
  return static_cast<int>(a.items - tile < PlanTuning::tile ? a.items - tile : PlanTuning::tile);
}

/// All slots in one tile.
template <int Bits>
__global__ void __launch_bounds__(PlanTuning::threads, PlanTuning::bounded) plan_one_tile(const Plan a) {
  __shared__ PlanShared<1 << Bits> shared;
  place_tile<Bits>(a, 0, tile_size(a, 0), /*alone=*/true, shared);
  for (int e = threadIdx.x; e < a.num_experts; e += PlanTuning::threads) {
    if (e == 0) a.offsets[0] = 0;
    a.offsets[e + 1] = shared.begin[e] + shared.total[e];
  }
}

/// Writes each block's counts to the workspace, [E, blocks].
template <int Bits>
__global__ void __launch_bounds__(PlanTuning::threads, PlanTuning::bounded) plan_count(const Plan a, int chunk) {
  __shared__ int count[1 << Bits];
  for (int e = threadIdx.x; e < 1 << Bits; e += PlanTuning::threads) count[e] = 0;
  __syncthreads();
  const int64_t begin = int64_t(blockIdx.x) * chunk;
  const int size = static_cast<int>(a.items - begin < chunk ? a.items - begin : chunk);
#pragma unroll 4
  for (int i = threadIdx.x; i < size; i += PlanTuning::threads) {
    const unsigned expert = a.experts[begin + i];
    if (expert < unsigned(a.num_experts)) atomicAdd(&count[expert], 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < a.num_experts; e += PlanTuning::threads)
    a.workspace[int64_t(e) * gridDim.x + blockIdx.x] = count[e];
}

/// Turns each expert's counts of blocks into the sum over the blocks before; totals go behind them. One warp an expert.
static __global__ void __launch_bounds__(PlanTuning::scan_threads)
    plan_scan(int32_t* workspace, int num_experts, int blocks) {
  const int lane = threadIdx.x % 32, e = (blockIdx.x * PlanTuning::scan_threads + threadIdx.x) / 32;
  if (e >= num_experts) return;
  int32_t* count = workspace + int64_t(e) * blocks;
  int carry = 0;
#pragma unroll 4
  for (int first = 0; first < blocks; first += 32) {
    const int own = first + lane < blocks ? count[first + lane] : 0;
    const int sum = sum_up_to<32>(own);
    if (first + lane < blocks) count[first + lane] = carry + sum - own;
    carry += __shfl_sync(whole_warp, sum, 31);
  }
  if (lane == 0) workspace[int64_t(num_experts) * blocks + e] = carry;
}

template <int Bits>
__global__ void __launch_bounds__(PlanTuning::threads, PlanTuning::bounded) plan_place(const Plan a, int chunk) {
  constexpr int experts = 1 << Bits, warps = PlanTuning::warps;
  __shared__ PlanShared<experts> shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x, blocks = gridDim.x;
  if constexpr (experts > PlanTuning::direct) {
    for (int e = threadIdx.x; e < experts; e += PlanTuning::threads) {
      shared.total[e] = e < a.num_experts ? a.workspace[int64_t(a.num_experts) * blocks + e] : 0;
      shared.next[e] = e < a.num_experts ? a.workspace[int64_t(e) * blocks + block] : 0;
    }
  } else {
    constexpr int turns = (experts + warps - 1) / warps;  // a warp sums over the blocks for an expert at a time
    int sum[turns] = {}, below[turns] = {};
    for (int b = lane; b < blocks; b += 32) {
#pragma unroll
      for (int t = 0; t < turns; ++t) {
        const int e = warp + warps * t;
        const int count = e < a.num_experts ? a.workspace[int64_t(e) * blocks + b] : 0;
        sum[t] += count;
        below[t] += b < block ? count : 0;
      }
    }
#pragma unroll
    for (int t = 0; t < turns; ++t) {
      sum[t] = sum_of_lanes<32>(sum[t]);
      below[t] = sum_of_lanes<32>(below[t]);
      if (lane == 0 && warp + warps * t < experts) {
        shared.total[warp + warps * t] = sum[t];
        shared.next[warp + warps * t] = below[t];
      }
    }
  }
  __syncthreads();
  if (warp == 0) {
    scan_experts<experts>(shared.total, shared.begin);
    for (int e = lane; e < experts; e += 32) {
      shared.next[e] += shared.begin[e];
      if (block == 0 && e < a.num_experts) {
        if (e == 0) a.offsets[0] = 0;
        a.offsets[e + 1] = shared.begin[e] + shared.total[e];
      }
    }
  }
  const int64_t begin = int64_t(block) * chunk, end = begin + chunk < a.items ? begin + chunk : a.items;
  for (int64_t tile = begin; tile < end; tile += PlanTuning::tile) {
    __syncthreads();  // what the tile before has left in shared memory has been read
    const int64_t left = end - tile;
    place_tile<Bits>(a, tile, static_cast<int>(left < PlanTuning::tile ? left : PlanTuning::tile), /*alone=*/false,
                     shared);
  }
}

}  // namespace detail

/// The number of int32 that Plan::workspace must hold.
inline cudaError_t plan_workspace(int64_t items, int num_experts, int64_t* size) {
  detail::PlanShape shape{};
  if (items > 0)
    if (const cudaError_t error = detail::plan_shape(items, &shape)) return error;
  *size = shape.blocks <= 1 ? 0 : int64_t(shape.blocks + 1) * num_experts;
  return cudaSuccess;
}

/// Launches one to three kernels.
inline cudaError_t plan(const Plan& a, cudaStream_t stream) {
  if (a.items == 0) return cudaMemsetAsync(a.offsets, 0, sizeof(int32_t) * (a.num_experts + 1), stream);
  detail::PlanShape shape;
  if (const cudaError_t error = detail::plan_shape(a.items, &shape)) return error;
  const auto launch = [&]<int Bits>() {
    constexpr int threads = detail::PlanTuning::threads;
    if (shape.blocks == 1) {
      detail::plan_one_tile<Bits><<<1, threads, 0, stream>>>(a);
    } else {
      detail::plan_count<Bits><<<shape.blocks, threads, 0, stream>>>(a, shape.chunk);
      if (const cudaError_t error = cudaGetLastError()) return error;
      if constexpr (1 << Bits > detail::PlanTuning::direct) {
        constexpr int each = detail::PlanTuning::scan_threads / 32;
        detail::plan_scan<<<(a.num_experts + each - 1) / each, detail::PlanTuning::scan_threads, 0, stream>>>(
            a.workspace, a.num_experts, shape.blocks);
      }
      detail::plan_place<Bits><<<shape.blocks, threads, 0, stream>>>(a, shape.chunk);
    }
    return cudaGetLastError();
  };
  if (a.num_experts <= 8) return launch.template operator()<3>();
  if (a.num_experts <= 32) return launch.template operator()<5>();
  if (a.num_experts <= 64) return launch.template operator()<6>();
  return launch.template operator()<8>();
}

}  // namespace moecod::kernel
