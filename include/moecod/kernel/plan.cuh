#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Plan: used slots sorted by expert, ties by slot.
///
/// Every warp owns a contiguous chunk of the slots. It counts its chunk's experts; prefix sums over warps, blocks and
/// experts give it the place where its first slot of each expert goes; then it walks its chunk once more, 32 slots at a
/// time, and places them. Who shares a lane's expert is found by one ballot for each bit of the expert's index, so the
/// cost does not depend on the load, and there are no atomics at all.
/// Up to `PlanTuning::one_block` slots this is one launch, else two. Bytes: slots in twice (the second time mostly from
/// L2), order and position out once.
namespace moecod::kernel {

namespace detail {

struct PlanTuning {
  static constexpr int warps = 32;         // a block
  static constexpr int one_block = 8192;   // slots that one block sorts by itself
  static constexpr int per_block = 4096;   // slots, at least, where there are several blocks
  static constexpr int unroll = 4;         // batches of 32 slots whose loads are in flight together
};

struct PlanShape {
  int blocks;
  int chunk;  // slots a warp, a multiple of 32
};

inline cudaError_t plan_shape(int64_t items, PlanShape* shape) {
  int limit = 0;
  if (const cudaError_t error = multiprocessors(&limit)) return error;
  const int64_t wanted = items <= PlanTuning::one_block ? 1 : (items + PlanTuning::per_block - 1) / PlanTuning::per_block;
  shape->blocks = static_cast<int>(wanted < limit ? wanted : limit);
  const int64_t warps = int64_t(shape->blocks) * PlanTuning::warps, batches = (items + 31) / 32;
  shape->chunk = static_cast<int>((batches + warps - 1) / warps * 32);
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

/// Calls f(slot, expert) for the warp's chunk, 32 slots at a time, all lanes together; beyond the end expert is -1.
template <class F>
__device__ __forceinline__ void for_each_batch(const Plan& a, int64_t begin, int chunk, F&& f) {
  const int lane = threadIdx.x % 32;
  for (int at = 0; at < chunk && begin + at < a.items; at += 32 * PlanTuning::unroll) {
    int expert[PlanTuning::unroll];
#pragma unroll
    for (int u = 0; u < PlanTuning::unroll; ++u) {
      const int64_t slot = begin + at + 32 * u + lane;
      expert[u] = at + 32 * u < chunk && slot < a.items ? a.experts[slot] : -1;
    }
#pragma unroll
    for (int u = 0; u < PlanTuning::unroll; ++u)
      if (at + 32 * u < chunk && begin + at + 32 * u < a.items) f(begin + at + 32 * u + lane, expert[u]);
  }
}

/// Shared memory of both kernels, for experts padded to 1 << Bits.
template <int Bits>
struct PlanShared {
  static constexpr int experts = 1 << Bits;
  int of_warp[PlanTuning::warps][experts + 1];  // counts, then sums over the warps before, then where the next goes
  int base[experts];
};

/// Counts the block's chunks and turns the counts into sums over the warps before; base gets the block's totals.
template <int Bits>
__device__ __forceinline__ void count_block(const Plan& a, int64_t begin, int chunk, PlanShared<Bits>& shared) {
  constexpr int experts = 1 << Bits, columns = (experts + 31) / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int count[columns] = {};
  for_each_batch(a, begin, chunk, [&](int64_t, int expert) {
    const Ballots<Bits> ballots(expert, a.num_experts);
#pragma unroll
    for (int c = 0; c < columns; ++c) count[c] += __popc(ballots.lanes_of(lane + 32 * c));
  });
#pragma unroll
  for (int c = 0; c < columns; ++c)
    if (lane + 32 * c < experts) shared.of_warp[warp][lane + 32 * c] = count[c];
  __syncthreads();
  for (int e = warp; e < experts; e += PlanTuning::warps) {  // lane l has warp l
    const int own = shared.of_warp[lane][e];
    int sum = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(whole_warp, sum, offset);
      if (lane >= offset) sum += other;
    }
    shared.of_warp[lane][e] = sum - own;
    if (lane == 31) shared.base[e] = sum;
  }
  __syncthreads();
}

/// Turns totals of experts into where each expert begins: base[e] <- before[e] + sum of totals below e.
/// `offsets`, if not null, gets the beginnings. Called by the first warp.
template <int Bits>
__device__ __forceinline__ void scan_experts(const Plan& a, int (&base)[1 << Bits], const int* total, bool write) {
  constexpr int experts = 1 << Bits, columns = (experts + 31) / 32;
  const int lane = threadIdx.x;
  int carry = 0;
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const int e = lane + 32 * c;
    const int own = e < experts ? total[e] : 0;
    int sum = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(whole_warp, sum, offset);
      if (lane >= offset) sum += other;
    }
    const int begin = carry + sum - own;
    if (e < experts) base[e] += begin;
    if (write && e < a.num_experts) {
      if (e == 0) a.offsets[0] = 0;
      a.offsets[e + 1] = begin + own;
    }
    carry += __shfl_sync(whole_warp, sum, 31);
  }
}

/// Places the warp's chunk; next[e] is where its next slot of expert e goes.
template <int Bits>
__device__ __forceinline__ void place(const Plan& a, int64_t begin, int chunk, int* next) {
  const int lane = threadIdx.x % 32;
  const unsigned lower = (1u << lane) - 1;
  for_each_batch(a, begin, chunk, [&](int64_t slot, int expert) {
    const Ballots<Bits> ballots(expert, a.num_experts);
    const bool used = ballots.used >> lane & 1;
    const unsigned peers = ballots.lanes_of(expert);
    const int rank = __popc(peers & lower);
    const int to = used ? next[expert] + rank : -1;
    __syncwarp();
    if (used && rank == 0) next[expert] = to + __popc(peers);
    __syncwarp();
    if (slot < a.items) a.position[slot] = to;
    if (used && to < a.assignments) a.order[to] = static_cast<int32_t>(slot);
  });
}

template <int Bits>
__global__ void __launch_bounds__(32 * PlanTuning::warps) plan_one_block(const Plan a, int chunk) {
  constexpr int experts = 1 << Bits;
  __shared__ PlanShared<Bits> shared;
  __shared__ int begin_of[experts];
  const int warp = threadIdx.x / 32;
  const int64_t begin = int64_t(warp) * chunk;
  count_block(a, begin, chunk, shared);
  if (threadIdx.x < experts) begin_of[threadIdx.x] = 0;
  __syncthreads();
  if (warp == 0) scan_experts<Bits>(a, begin_of, shared.base, /*write=*/true);
  __syncthreads();
  for (int e = threadIdx.x % 32; e < experts; e += 32) shared.of_warp[warp][e] += begin_of[e];
  __syncwarp();
  place<Bits>(a, begin, chunk, shared.of_warp[warp]);
}

// The workspace of the two kernels: totals [E, blocks], then sums over the warps before [blocks, warps, E].

template <int Bits>
__global__ void __launch_bounds__(32 * PlanTuning::warps) plan_count(const Plan a, int chunk) {
  __shared__ PlanShared<Bits> shared;
  const int warp = threadIdx.x / 32;
  const int64_t of_warp = int64_t(blockIdx.x) * PlanTuning::warps + warp;
  count_block(a, of_warp * chunk, chunk, shared);
  int32_t* totals = a.workspace;
  int32_t* before = a.workspace + int64_t(a.num_experts) * gridDim.x + of_warp * a.num_experts;
  for (int e = threadIdx.x; e < a.num_experts; e += 32 * PlanTuning::warps)
    totals[int64_t(e) * gridDim.x + blockIdx.x] = shared.base[e];
  for (int e = threadIdx.x % 32; e < a.num_experts; e += 32) before[e] = shared.of_warp[warp][e];
}

template <int Bits>
__global__ void __launch_bounds__(32 * PlanTuning::warps) plan_place(const Plan a, int chunk) {
  constexpr int experts = 1 << Bits;
  __shared__ PlanShared<Bits> shared;
  __shared__ int total[experts];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x, blocks = gridDim.x;
  for (int e = warp; e < experts; e += PlanTuning::warps) {
    int sum = 0, below = 0;
    if (e < a.num_experts)
      for (int b = lane; b < blocks; b += 32) {
        const int count = a.workspace[int64_t(e) * blocks + b];
        sum += count;
        if (b < block) below += count;
      }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(whole_warp, sum, offset);
      below += __shfl_xor_sync(whole_warp, below, offset);
    }
    if (lane == 0) total[e] = sum, shared.base[e] = below;
  }
  __syncthreads();
  if (warp == 0) scan_experts<Bits>(a, shared.base, total, /*write=*/block == 0);
  __syncthreads();
  const int64_t of_warp = int64_t(block) * PlanTuning::warps + warp;
  const int32_t* before = a.workspace + int64_t(a.num_experts) * blocks + of_warp * a.num_experts;
  for (int e = lane; e < a.num_experts; e += 32) shared.of_warp[warp][e] = shared.base[e] + before[e];
  __syncwarp();
  place<Bits>(a, of_warp * chunk, chunk, shared.of_warp[warp]);
}

}  // namespace detail

/// The number of int32 that Plan::workspace must hold.
inline cudaError_t plan_workspace(int64_t items, int num_experts, int64_t* size) {
  detail::PlanShape shape;
  if (const cudaError_t error = detail::plan_shape(items, &shape)) return error;
  *size = shape.blocks == 1 ? 0 : int64_t(shape.blocks) * num_experts * (1 + detail::PlanTuning::warps);
  return cudaSuccess;
}

/// Launches one or two kernels.
inline cudaError_t plan(const Plan& a, cudaStream_t stream) {
  if (a.items == 0) return cudaMemsetAsync(a.offsets, 0, sizeof(int32_t) * (a.num_experts + 1), stream);
  detail::PlanShape shape;
  if (const cudaError_t error = detail::plan_shape(a.items, &shape)) return error;
  const auto launch = [&]<int Bits>() {
    constexpr int threads = 32 * detail::PlanTuning::warps;
    if (shape.blocks == 1) {
      detail::plan_one_block<Bits><<<1, threads, 0, stream>>>(a, shape.chunk);
    } else {
      detail::plan_count<Bits><<<shape.blocks, threads, 0, stream>>>(a, shape.chunk);
      if (const cudaError_t error = cudaGetLastError()) return error;
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
