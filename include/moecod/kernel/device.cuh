#pragma once
#ifndef __CUDACC__
#error "moecod/kernel/*.cuh need nvcc; C++ reaches the kernels through the operators of moecod/core/operators.hpp"
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <climits>
#include <cstdint>

/// What the kernels share: warp reductions, vectors of elements, the size of the device.
namespace moecod::kernel {

inline constexpr unsigned whole_warp = 0xffffffffu;

/// Reductions over groups of `Lanes` neighbouring lanes (a power of two), in a fixed order; every lane gets the result.
template <int Lanes>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(whole_warp, x, offset);
  return x;
}

template <int Lanes>
__device__ __forceinline__ float max_of_lanes(float x) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(whole_warp, x, offset));
  return x;
}

template <int Lanes>
__device__ __forceinline__ unsigned max_of_lanes(unsigned x) {
#if __CUDA_ARCH__ >= 800
  constexpr int by_shuffles = Lanes == 32 ? 1 : Lanes;
#else
  constexpr int by_shuffles = Lanes;
#endif
#pragma unroll
  for (int offset = by_shuffles / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(whole_warp, x, offset));
#if __CUDA_ARCH__ >= 800
  if constexpr (Lanes == 32) x = __reduce_max_sync(whole_warp, x);
#endif
  return x;
}

template <int Lanes>
__device__ __forceinline__ int min_of_lanes(int x) {
#if __CUDA_ARCH__ >= 800
  constexpr int by_shuffles = Lanes == 32 ? 1 : Lanes;
#else
  constexpr int by_shuffles = Lanes;
#endif
#pragma unroll
  for (int offset = by_shuffles / 2; offset > 0; offset /= 2) x = min(x, __shfl_xor_sync(whole_warp, x, offset));
#if __CUDA_ARCH__ >= 800
  if constexpr (Lanes == 32) x = __reduce_min_sync(whole_warp, x);
#endif
  return x;
}

/// V elements that are loaded and stored at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// Multiprocessors of the current device.
inline cudaError_t multiprocessors(int* count) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace moecod::kernel
