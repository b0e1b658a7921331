#pragma once
#include "moecod/kernel/device.cuh"

#include <cuda.h>

/// The instructions of compute capability 9.0 that matrix kernels use: barriers in shared memory, tile copies by the
/// tensor memory accelerator (TMA), and products by warpgroups (wgmma). Names and operands as in the PTX manual.
///
/// Code for other architectures compiles to nothing; callers ask `is_hopper` on the host before they launch.
namespace moecod::kernel::hopper {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MOECOD_HOPPER_CODE 1
#else
#define MOECOD_HOPPER_CODE 0
#endif

/// Whether code for compute capability 9.0 with its own instructions (90a) is among what is compiled. A build without it says so
/// by 0: nothing else tells the host that the kernels are empty.
#ifndef MOECOD_HOPPER_KERNELS
#define MOECOD_HOPPER_KERNELS 1
#endif

/// Bytes of shared memory that a block may have.
inline constexpr uint32_t shared_memory = 227 << 10;

/// Whether the current device runs these kernels.
inline bool is_hopper() {
  if (!MOECOD_HOPPER_KERNELS) return false;
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
}

/// A function of the driver, found through the runtime, so that nothing links libcuda; null where it has none.
template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(found) : nullptr;
}

/// Gives this thread the current device's context where it has none, which the driver's functions below need and the runtime's
/// calls do for themselves: a thread of autograd's may begin here.
inline cudaError_t bind_context() {
  static const auto current = driver_function<decltype(&cuCtxGetCurrent)>("cuCtxGetCurrent");
  CUcontext context = nullptr;
  if (current && current(&context) == CUDA_SUCCESS && context) return cudaSuccess;
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error ? error : cudaSetDevice(device);
}

/// A tensor of bfloat16, innermost dimension first, read or written in boxes whose rows of 64 elements are swizzled by 128
/// bytes; what lies outside reads as zero and is not written. `strides`: of all dimensions but the first, in elements.
template <int Rank>
cudaError_t tiled_map(CUtensorMap* map, const void* data, const uint64_t (&sizes)[Rank], const uint32_t (&box)[Rank],
                      const uint64_t (&strides)[Rank - 1]) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (!encode) return cudaErrorNotSupported;
  cuuint64_t size[Rank], stride[Rank - 1];
  cuuint32_t shape[Rank], one[Rank];
  for (int i = 0; i < Rank; ++i) {
    size[i] = sizes[i];
    shape[i] = box[i];
    one[i] = 1;
    if (i > 0) stride[i - 1] = 2 * strides[i - 1];
  }
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Rank, const_cast<void*>(data), size, stride, shape, one,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

/// The same of a contiguous tensor.
template <int Rank>
cudaError_t tiled_map(CUtensorMap* map, const void* data, const uint64_t (&sizes)[Rank], const uint32_t (&box)[Rank]) {
  uint64_t strides[Rank - 1], elements = 1;
  for (int i = 0; i + 1 < Rank; ++i) strides[i] = elements *= sizes[i];
  return tiled_map<Rank>(map, data, sizes, box, strides);
}

/// Images [M, H, W, C] of bfloat16 read as columns: `pixels` consecutive positions of a convolution's output, 64
/// channels of each, at a tap that the load names. lower, upper: how far (height, width) the first and the last
/// position of the first tap lie outside of the image's first and last pixel.
inline cudaError_t columns_map(CUtensorMap* map, const void* data, int64_t images, int height, int width, int channels,
                               const int (&lower)[2], const int (&upper)[2], int pixels) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (!encode) return cudaErrorNotSupported;
  const auto c = static_cast<cuuint64_t>(channels), w = static_cast<cuuint64_t>(width);
  const auto h = static_cast<cuuint64_t>(height);
  const cuuint64_t size[] = {c, w, h, static_cast<cuuint64_t>(images)}, stride[] = {2 * c, 2 * c * w, 2 * c * w * h};
  const int low[] = {lower[1], lower[0]}, high[] = {upper[1], upper[0]};
  const cuuint32_t one[] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), size, stride, low, high, 64,
                static_cast<cuuint32_t>(pixels), one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if MOECOD_HOPPER_CODE

// --- barriers in shared memory

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes the barriers' first state visible to TMA.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Arrives, and has the barrier wait for so many bytes.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Returns once the phase of that parity is over.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

/// The place of the next step in a ring of stages in shared memory, and the parity of its barriers.
template <int Stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- clusters of two blocks, which read and write each other's shared memory

/// All threads of both blocks: what either wrote to shared memory before is seen by both after.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Arrives at the barrier that lies at the same place in block `rank` of the cluster. Not a release at the cluster's
/// scope, which would wait for the thread's stores to global memory each time: it says that wgmma has read a tile.
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

/// A barrier of `threads` threads of the block, of the sixteen that it has.
__device__ __forceinline__ void named_barrier(int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(threads) : "memory");
}
/// What this thread stored to shared memory becomes visible to TMA and wgmma, once a barrier has been passed; and what other
/// threads did, whose barrier this one has passed, to its own wgmma.
__device__ __forceinline__ void publish_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Hands registers from the warpgroup that loads to those that multiply; each calls its own, all of its warps.
template <int Registers>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

// --- TMA loads of a box at the given coordinates, innermost first; one thread issues

__device__ __forceinline__ void load_box(void* to, const CUtensorMap& map, uint64_t* barrier, int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1)
      : "memory");
}
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& map, uint64_t* barrier, int x0, int x1, int x2,
                                         int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& map, uint64_t* barrier, int x0, int x1, int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
/// The same to both blocks of a cluster: to the same place, and counted by the barrier there.
__device__ __forceinline__ void load_box_for_both(void* to, const CUtensorMap& map, uint64_t* barrier, int x0, int x1,
                                                  int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "h"(uint16_t{3})
      : "memory");
}
/// Brings a box to L2 alone.
__device__ __forceinline__ void prefetch_box(const CUtensorMap& map, int x0, int x1, int x2) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x0), "r"(x1),
               "r"(x2)
               : "memory");
}
/// The other way; what lies outside of the tensor is not written.
__device__ __forceinline__ void store_box(const CUtensorMap& map, const void* from, int x0, int x1, int x2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until this thread's committed stores have read what they store.
__device__ __forceinline__ void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
/// Consecutive positions from (h, w) of image n, at the tap that lies (down, right) of the first.
__device__ __forceinline__ void load_columns(void* to, const CUtensorMap& map, uint64_t* barrier, int channel, int w,
                                             int h, int n, int right, int down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(w), "r"(h), "r"(n),
      "h"(static_cast<uint16_t>(right)), "h"(static_cast<uint16_t>(down))
      : "memory");
}

// --- copies of 16 bytes by single threads

/// Copies a vector from global to shared memory, or zeros there, some time.
__device__ __forceinline__ void copy_vector(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
/// Arrives at the barrier once all of the thread's copies so far have landed.
__device__ __forceinline__ void copies_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Waits until all of the thread's copies have landed.
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// --- products of a warpgroup (four warps) from tiles in shared memory

/// A tile of rows of 64 elements, swizzled by 128 bytes; it starts at a multiple of 1024 bytes, or in the first of its
/// rows at the k wanted. Along the 64 lies k; rows follow each other.
__device__ __forceinline__ uint64_t along_k(uint32_t address) {
  return (address >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
/// The same tile read the other way: each row is one k, along the 64 lie m or n, and blocks of 64 of those are `block`
/// bytes apart.
__device__ __forceinline__ uint64_t across_k(uint32_t address, uint32_t block) {
  return (address >> 4 & 0x3fff) | uint64_t(block >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `Pending` of the committed groups run.
template <int Pending>
__device__ __forceinline__ void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from moving uses of accumulators across: before the first product, and after the last wait.
template <int Size>
__device__ __forceinline__ void settle(float (&d)[Size]) {
#pragma unroll
  for (int i = 0; i < Size; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define MOECOD_FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MOECOD_EIGHT(d, i) MOECOD_FOUR(d, i), MOECOD_FOUR(d, i + 4)

/// d [64, 64] = A B + (accumulate ? d : 0); four registers a row of eight columns.
template <bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply_64(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, %35, %36;\n"
      "}\n"
      : MOECOD_EIGHT(d, 0), MOECOD_EIGHT(d, 8), MOECOD_EIGHT(d, 16), MOECOD_EIGHT(d, 24)
      : "l"(a), "l"(b), "r"(accumulate), "n"(int(TransposedA)), "n"(int(TransposedB)));
}

/// d [64, 128] = A B + (accumulate ? d : 0); four registers a row of eight columns.
template <bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply_128(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, %68;\n"
      "}\n"
      : MOECOD_EIGHT(d, 0), MOECOD_EIGHT(d, 8), MOECOD_EIGHT(d, 16), MOECOD_EIGHT(d, 24), MOECOD_EIGHT(d, 32),
        MOECOD_EIGHT(d, 40), MOECOD_EIGHT(d, 48), MOECOD_EIGHT(d, 56)
      : "l"(a), "l"(b), "r"(accumulate), "n"(int(TransposedA)), "n"(int(TransposedB)));
}

/// d [64, 176] = A B + (accumulate ? d : 0); four registers a row of eight columns.
template <bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply_176(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %90, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87}, "
      "%88, %89, p, 1, 1, %91, %92;\n"
      "}\n"
      : MOECOD_EIGHT(d, 0), MOECOD_EIGHT(d, 8), MOECOD_EIGHT(d, 16), MOECOD_EIGHT(d, 24), MOECOD_EIGHT(d, 32),
        MOECOD_EIGHT(d, 40), MOECOD_EIGHT(d, 48), MOECOD_EIGHT(d, 56), MOECOD_EIGHT(d, 64), MOECOD_EIGHT(d, 72),
        MOECOD_EIGHT(d, 80)
      : "l"(a), "l"(b), "r"(accumulate), "n"(int(TransposedA)), "n"(int(TransposedB)));
}

/// d [64, 192] = A B + (accumulate ? d : 0); four registers a row of eight columns.
template <bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply_192(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, p, 1, 1, %99, %100;\n"
      "}\n"
      : MOECOD_EIGHT(d, 0), MOECOD_EIGHT(d, 8), MOECOD_EIGHT(d, 16), MOECOD_EIGHT(d, 24), MOECOD_EIGHT(d, 32),
        MOECOD_EIGHT(d, 40), MOECOD_EIGHT(d, 48), MOECOD_EIGHT(d, 56), MOECOD_EIGHT(d, 64), MOECOD_EIGHT(d, 72),
        MOECOD_EIGHT(d, 80), MOECOD_EIGHT(d, 88)
      : "l"(a), "l"(b), "r"(accumulate), "n"(int(TransposedA)), "n"(int(TransposedB)));
}

/// d [64, 256] = A B + (accumulate ? d : 0); four registers a row of eight columns.
template <bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply_256(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, %131, %132;\n"
      "}\n"
      : MOECOD_EIGHT(d, 0), MOECOD_EIGHT(d, 8), MOECOD_EIGHT(d, 16), MOECOD_EIGHT(d, 24), MOECOD_EIGHT(d, 32),
        MOECOD_EIGHT(d, 40), MOECOD_EIGHT(d, 48), MOECOD_EIGHT(d, 56), MOECOD_EIGHT(d, 64), MOECOD_EIGHT(d, 72),
        MOECOD_EIGHT(d, 80), MOECOD_EIGHT(d, 88), MOECOD_EIGHT(d, 96), MOECOD_EIGHT(d, 104), MOECOD_EIGHT(d, 112),
        MOECOD_EIGHT(d, 120)
      : "l"(a), "l"(b), "r"(accumulate), "n"(int(TransposedA)), "n"(int(TransposedB)));
}

#undef MOECOD_EIGHT
#undef MOECOD_FOUR

/// d [64, Width] = A B + (accumulate ? d : 0), B being `block` bytes further for every 64 columns.
template <int Width, bool TransposedA, bool TransposedB>
__device__ __forceinline__ void multiply(float* d, uint64_t a, uint64_t b, uint32_t block, int accumulate) {
  static_assert(Width % 64 == 0 || Width == 176);
  if constexpr (Width >= 256) {
    multiply_256<TransposedA, TransposedB>(d, a, b, accumulate);
    if constexpr (Width > 256)
      multiply<Width - 256, TransposedA, TransposedB>(d + 128, a, b + (4 * block >> 4), block, accumulate);
  } else if constexpr (Width == 192) {
    multiply_192<TransposedA, TransposedB>(d, a, b, accumulate);
  } else if constexpr (Width == 176) {
    multiply_176<TransposedA, TransposedB>(d, a, b, accumulate);
  } else if constexpr (Width == 128) {
    multiply_128<TransposedA, TransposedB>(d, a, b, accumulate);
  } else {
    multiply_64<TransposedA, TransposedB>(d, a, b, accumulate);
  }
}

#endif

}  // namespace moecod::kernel::hopper
