#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/device.cuh"

/// The activations of feed-forward experts, forward, and backward with the activation computed anew.
///
///     gelu    a = h Phi(h)                     (exact, by erf)
///     swiglu  a = silu(g) u, [g, u] = h        (Shazeer 2020)
/// Backward keeps h alone: it gives d_h and, for the weight gradient of the layer that follows, a. Arithmetic in
/// float32. Bytes: each input once, each output once.
namespace moecod::kernel {

namespace detail {

struct ActivationTuning {
  static constexpr int threads = 256;
};

struct Gelu {
  static constexpr bool gated = false;
  __device__ static float forward(float h, float) { return h * 0.5f * (1 + erff(h * 0.70710678118654752f)); }
  __device__ static void backward(float d, float h, float, float& a, float& d_h, float&) {
    const float phi = 0.5f * (1 + erff(h * 0.70710678118654752f));
    a = h * phi;
    d_h = d * (phi + h * 0.39894228040143268f * __expf(-0.5f * h * h));
  }
};

/// 1 / (1 + exp(-x)) to some units in the last place; as __expf and __fdividef compute it, without their care for results below
/// 1e-38, which makes a third of their instructions.
__device__ __forceinline__ float sigmoid(float x) {
  float exponential, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(-1.4426950408889634f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1 + exponential));
  return inverse;
}

struct SwiGlu {
  static constexpr bool gated = true;
  __device__ static float forward(float g, float u) { return g * sigmoid(g) * u; }
  __device__ static void backward(float d, float g, float u, float& a, float& d_g, float& d_u) {
    const float s = sigmoid(g), silu = g * s;
    a = silu * u;
    d_g = d * u * (s + s * (g - silu));
    d_u = d * silu;
  }
};

struct RowAndVector {
  int64_t row, vector;
};
/// Division of 64 bits takes as many instructions as the activation.
__device__ __forceinline__ RowAndVector row_and_vector(int64_t i, int64_t vectors) {
  if (i > UINT_MAX) return {i / vectors, i % vectors};
  const unsigned row = unsigned(i) / unsigned(vectors);
  return {row, unsigned(i) - row * unsigned(vectors)};
}

template <class T, int V, class Function>
__global__ void __launch_bounds__(ActivationTuning::threads) activate(const Activate a) {
  using Vector = Pack<T, V>;
  const int64_t vectors = a.width / V, total = a.rows * vectors;
  for (int64_t i = int64_t(blockIdx.x) * ActivationTuning::threads + threadIdx.x; i < total;
       i += int64_t(gridDim.x) * ActivationTuning::threads) {
    const auto [row, v] = row_and_vector(i, vectors);
    const Vector* h = static_cast<const Vector*>(a.h) + row * vectors * (Function::gated ? 2 : 1) + v;
    const Vector first = h[0], second = h[Function::gated ? vectors : 0];
    float g[V], u[V];
    first.read([&](int c, float x) { g[c] = x; });
    second.read([&](int c, float x) { u[c] = x; });
    Vector out;
    out.write([&](int c) { return Function::forward(g[c], u[c]); });
    static_cast<Vector*>(a.a)[i] = out;
  }
}

template <class T, int V, class Function>
__global__ void __launch_bounds__(ActivationTuning::threads) activate_backward(const ActivateBackward a) {
  using Vector = Pack<T, V>;
  const int64_t vectors = a.width / V, total = a.rows * vectors;
  for (int64_t i = int64_t(blockIdx.x) * ActivationTuning::threads + threadIdx.x; i < total;
       i += int64_t(gridDim.x) * ActivationTuning::threads) {
    const auto [row, v] = row_and_vector(i, vectors);
    const int64_t at = row * vectors * (Function::gated ? 2 : 1) + v;
    const Vector* h = static_cast<const Vector*>(a.h) + at;
    const Vector grad = static_cast<const Vector*>(a.d_a)[i], first = h[0], second = h[Function::gated ? vectors : 0];
    float d[V], g[V], u[V], out[V];
    grad.read([&](int c, float x) { d[c] = x; });
    first.read([&](int c, float x) { g[c] = x; });
    second.read([&](int c, float x) { u[c] = x; });
#pragma unroll
    for (int c = 0; c < V; ++c) {
      float d_g, d_u = 0;
      Function::backward(d[c], g[c], u[c], out[c], d_g, d_u);
      g[c] = d_g;
      u[c] = d_u;
    }
    Vector packed;
    packed.write([&](int c) { return g[c]; });
    Vector* d_h = static_cast<Vector*>(a.d_h) + at;
    d_h[0] = packed;
    if constexpr (Function::gated) {
      packed.write([&](int c) { return u[c]; });
      d_h[vectors] = packed;
    }
    if (a.a) {
      packed.write([&](int c) { return out[c]; });
      static_cast<Vector*>(a.a)[i] = packed;
    }
  }
}

/// Calls f<T, V, Function>() for the type, the activation, and vectors of 16 bytes where they fit.
template <class F, class... Pointers>
cudaError_t with_activation(Type type, Activation activation, int64_t width, F&& f, Pointers... pointers) {
  return with_type(type, [&]<class T>(T) {
    constexpr int wide = 16 / sizeof(T);
    const bool fits = width % wide == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
    if (activation == Activation::gelu)
      fits ? f.template operator()<T, wide, Gelu>() : f.template operator()<T, 1, Gelu>();
    else
      fits ? f.template operator()<T, wide, SwiGlu>() : f.template operator()<T, 1, SwiGlu>();
    return cudaGetLastError();
  });
}

inline unsigned activation_blocks(int64_t vectors) {
  const int64_t blocks = (vectors + ActivationTuning::threads - 1) / ActivationTuning::threads;
  return static_cast<unsigned>(blocks < 1 << 20 ? blocks : 1 << 20);
}

}  // namespace detail

/// One launch.
inline cudaError_t activate(const Activate& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  return detail::with_activation(
      a.type, a.activation, a.width,
      [&]<class T, int V, class Function>() {
        detail::activate<T, V, Function>
            <<<detail::activation_blocks(a.rows * a.width / V), detail::ActivationTuning::threads, 0, stream>>>(a);
      },
      a.h, a.a);
}

/// One launch.
inline cudaError_t activate_backward(const ActivateBackward& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  return detail::with_activation(
      a.type, a.activation, a.width,
      [&]<class T, int V, class Function>() {
        detail::activate_backward<T, V, Function>
            <<<detail::activation_blocks(a.rows * a.width / V), detail::ActivationTuning::threads, 0, stream>>>(a);
      },
      a.d_a, a.h, a.d_h, a.a);
}

}  // namespace moecod::kernel
