#pragma once
#include "moecod/kernel/hopper.cuh"

/// Rows of a matrix that lie anywhere, brought into tiles of 64 elements a row in the stages of a ring, swizzled as TMA
/// does. TMA has no such load on compute capability 9.0, and takes 26 cycles for a box of one row; so two warps copy 16 bytes a
/// lane. Who reads the tiles with wgmma calls hopper::publish_stores before.
namespace moecod::kernel::detail {

/// Arrivals at the barrier of a full stage beside those of its TMA loads: of two warps.
inline constexpr int gather_arrivals = 64;

#if MOECOD_HOPPER_CODE

/// One of those warps, with `Rows` rows of each tile: eight at a time, four lanes a row, so that a lane has few rows and knows
/// where they begin.
template <int Stages, int Rows>
class Gatherer {
 public:
  /// warp: 0 or 1 of them.
  __device__ __forceinline__ Gatherer(int warp, uint64_t* full, uint64_t* empty)
      : full_(full), empty_(empty), lane_(threadIdx.x % 32), warp_(warp) {}

  /// The rows from now on: 32 i + lane of the warp's begins `source[i]` vectors of 16 bytes behind `matrix`.
  __device__ __forceinline__ void set_rows(const void* matrix, const uint32_t (&source)[Rows / 32]) {
#pragma unroll
    for (int i = 0; i < Rows / 8; ++i) {
      from_[i] = static_cast<const uint4*>(matrix) + lane_ % 4 +
                 __shfl_sync(whole_warp, source[i / 4], 8 * (i % 4) + lane_ / 4);
      asm volatile("" : "+l"(from_[i]));  // an address, not a sum for each copy
    }
  }

  /// Eight vectors further in each row.
  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int i = 0; i < Rows / 8; ++i) from_[i] += 8;
  }

  /// Waits until the next stage may be written, and returns its number.
  __device__ __forceinline__ int begin() {
    hopper::barrier_wait(&empty_[ring_.stage], ring_.parity ^ 1);
    return ring_.stage;
  }

  /// The warp's part of a tile: eight vectors `Block` times eight further in each row, zeros where no more than `left`
  /// remain there.
  template <int Block = 0>
  __device__ __forceinline__ void copy(uint8_t* tile, int left) {
    const bool low = 8 * Block + lane_ % 4 < left, high = 8 * Block + 4 + lane_ % 4 < left;
    const uint32_t to = hopper::shared_address(tile) + (warp_ * Rows + lane_ / 4) * 128 + (lane_ % 4 ^ lane_ / 4) * 16;
#pragma unroll
    for (int i = 0; i < Rows / 8; ++i) {
      hopper::copy_vector(to + i * 1024, from_[i] + 8 * Block, low);
      hopper::copy_vector((to ^ 64) + i * 1024, from_[i] + 8 * Block + 4, high);
    }
  }

  /// Behind the last stage, before the thread ends.
  __device__ __forceinline__ void finish() { hopper::copies_wait(); }

  /// Ends the stage that begin named: it is full once this thread's copies have landed.
  __device__ __forceinline__ void end() {
    hopper::copies_arrive(&full_[ring_.stage]);
    ring_.next();
  }

 private:
  const uint4* from_[Rows / 8] = {};
  uint64_t *full_, *empty_;
  int lane_, warp_;
  hopper::Ring<Stages> ring_;
};

#endif

}  // namespace moecod::kernel::detail
