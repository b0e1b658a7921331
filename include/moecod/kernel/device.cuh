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

/// Blocks of `Threads` that a multiprocessor is to hold at least, which bounds a kernel's registers; Turing holds 1024
/// threads.
template <int Threads, int Wanted>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr int resident = Wanted * Threads <= 1024 ? Wanted : 1024 / Threads;
#else
inline constexpr int resident = Wanted;
#endif

/// Reductions over groups of `Lanes` neighbouring lanes (a power of two), in a fixed order; every lane gets the result.
template <int Lanes, class T>
__device__ __forceinline__ T sum_of_lanes(T x) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(whole_warp, x, offset);
  return x;
}

/// The same of a number of lanes that is known at run time.
__device__ __forceinline__ float sum_of_lanes(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(whole_warp, x, offset);
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

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

__device__ __forceinline__ void from_float(float x, float& out) { out = x; }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void from_float(float x, __half& out) { out = __float2half_rn(x); }

/// As __bfloat1622float2, which takes an instruction more for the second.
__device__ __forceinline__ float2 to_floats(__nv_bfloat162 x) {
  const auto two = reinterpret_cast<const uint32_t&>(x);
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
}
__device__ __forceinline__ float2 to_floats(__half2 x) { return __half22float2(x); }
__device__ __forceinline__ void from_floats(float x, float y, __nv_bfloat162& out) { out = __floats2bfloat162_rn(x, y); }
__device__ __forceinline__ void from_floats(float x, float y, __half2& out) { out = __floats2half2_rn(x, y); }

/// V elements that are loaded and stored at once; two of a half type share a register.
template <class T, int V>
struct Pack;

template <class T, int V>
  requires(sizeof(T) == 4 || V == 1)
struct alignas(sizeof(T) * V) Pack<T, V> {
  T at[V];
  /// f(c, element c) for each.
  template <class F>
  __device__ __forceinline__ void read(F&& f) const {
#pragma unroll
    for (int c = 0; c < V; ++c) f(c, to_float(at[c]));
  }
  /// Element c becomes f(c).
  template <class F>
  __device__ __forceinline__ void write(F&& f) {
#pragma unroll
    for (int c = 0; c < V; ++c) from_float(f(c), at[c]);
  }
};

template <class T>
struct two_of;
template <>
struct two_of<__nv_bfloat16> {
  using type = __nv_bfloat162;
};
template <>
struct two_of<__half> {
  using type = __half2;
};

template <class T, int V>
  requires(sizeof(T) == 2 && V > 1)
struct alignas(sizeof(T) * V) Pack<T, V> {
  typename two_of<T>::type at[V / 2];
  template <class F>
  __device__ __forceinline__ void read(F&& f) const {
#pragma unroll
    for (int c = 0; c < V / 2; ++c) {
      const float2 two = to_floats(at[c]);
      f(2 * c, two.x);
      f(2 * c + 1, two.y);
    }
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) {
#pragma unroll
    for (int c = 0; c < V / 2; ++c) from_floats(f(2 * c), f(2 * c + 1), at[c]);
  }
};

/// V floats, in vectors of four; they lie at a multiple of 16 bytes.
template <int V>
__device__ __forceinline__ void read_floats(const float* from, float (&to)[V]) {
#pragma unroll
  for (int c = 0; c < V; c += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + c);
    to[c] = four.x;
    to[c + 1] = four.y;
    to[c + 2] = four.z;
    to[c + 3] = four.w;
  }
}

/// Multiprocessors of the current device.
inline cudaError_t multiprocessors(int* count) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace moecod::kernel
