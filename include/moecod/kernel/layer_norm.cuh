#pragma once
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/pieces.cuh"

/// Layer normalisation of rows sorted by expert, each with its expert's weight and bias.
///
///     y = (x - mean) rstd w + b,   rstd = 1 / sqrt(variance + eps)
///     d_x = rstd (u - mean(u) - z mean(u z)),   z = (x - mean) rstd,   u = grad w
///     d_w = sum over rows of grad z,   d_b = sum over rows of grad
/// A few neighbouring lanes hold a row in registers: 8 of them for 64 halves, so that narrow rows fill the warps. The
/// backward pass takes mean and rstd anew from x, which it reads anyway, so nothing is kept; sums over rows go piece by
/// piece, and over pieces in their order. Bytes: forward x in, y out; backward grad and x in, d_x out.
namespace moecod::kernel {

namespace detail {

struct LayerNormTuning {
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int most_steps = 4;  // vectors a lane; layer_norm_takes what 32 such lanes hold
};

/// How a row's vectors lie over lanes: lane i of `lanes` (a power of two) holds vectors i, i + lanes, ...
struct LayerNormLanes {
  int lanes = 1, steps = 1;
};

/// The fewest idle places, and of those the most lanes.
inline LayerNormLanes layer_norm_lanes(int64_t vectors) {
  LayerNormLanes best;
  int64_t places = INT64_MAX;
  for (int lanes = 32; lanes > 0; lanes /= 2) {
    const int64_t steps = (vectors + lanes - 1) / lanes;
    if (steps > LayerNormTuning::most_steps || steps * lanes >= places) continue;
    places = steps * lanes;
    best = {lanes, static_cast<int>(steps)};
  }
  return best;
}

/// A lane's share of one row.
template <class T, int V, int Steps>
struct RowShare {
  using Vector = Pack<T, V>;
  float at[Steps][V];

  __device__ __forceinline__ void read(const void* rows, int64_t row, int vectors, int lane, int lanes, bool live) {
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      const int v = lane + s * lanes;
      Vector in{};
      if (live && v < vectors) in = static_cast<const Vector*>(rows)[row * vectors + v];
      in.read([&](int c, float x) { at[s][c] = x; });
    }
  }
  /// f(s, c) summed over the row; places behind its end do not count.
  template <class F>
  __device__ __forceinline__ float sum(int vectors, int lane, int lanes, F&& f) const {
    float total = 0;
#pragma unroll
    for (int s = 0; s < Steps; ++s)
      if (lane + s * lanes < vectors) {
#pragma unroll
        for (int c = 0; c < V; ++c) total += f(s, c);
      }
    return sum_of_lanes(total, lanes);
  }
  /// Makes the row z, and returns rstd.
  __device__ __forceinline__ float normalise(int vectors, int lane, int lanes, float eps) {
    const float per = 1.0f / static_cast<float>(vectors * V);
    const float mean = per * sum(vectors, lane, lanes, [&](int s, int c) { return at[s][c]; });
    const float variance =
        per * sum(vectors, lane, lanes, [&](int s, int c) { return (at[s][c] - mean) * (at[s][c] - mean); });
    const float rstd = rsqrtf(variance + eps);
#pragma unroll
    for (int s = 0; s < Steps; ++s)
#pragma unroll
      for (int c = 0; c < V; ++c) at[s][c] = (at[s][c] - mean) * rstd;
    return rstd;
  }
};

template <class T, int V, int Steps>
__global__ void __launch_bounds__(LayerNormTuning::threads) layer_norm(const LayerNorm a, int lanes) {
  const int lane = threadIdx.x & (lanes - 1), vectors = static_cast<int>(a.width / V);
  const int64_t row = int64_t(blockIdx.x) * (LayerNormTuning::threads / lanes) + threadIdx.x / lanes;
  const bool live = row < a.groups.items();  // all lanes stay for the shuffles
  RowShare<T, V, Steps> x;
  x.read(a.x, row, vectors, lane, lanes, live);
  x.normalise(vectors, lane, lanes, a.eps);
  if (!live) return;
  const int expert = expert_of(a.groups.offsets, a.groups.experts, row / a.groups.each);
#pragma unroll
  for (int s = 0; s < Steps; ++s) {
    const int v = lane + s * lanes;
    if (v >= vectors) continue;
    float w[V], b[V];
    read_floats(a.weight + expert * a.width + v * V, w);
    read_floats(a.bias + expert * a.width + v * V, b);
    Pack<T, V> y;
    y.write([&](int c) { return fmaf(x.at[s][c], w[c], b[c]); });
    static_cast<Pack<T, V>*>(a.y)[row * vectors + v] = y;
  }
}

/// One block a piece of rows.
template <class T, int V, int Steps>
__global__ void __launch_bounds__(LayerNormTuning::threads)
    layer_norm_backward(const LayerNormBackward a, int lanes, int64_t size) {
  extern __shared__ float parts[];  // [warps][width]
  const Piece& piece = find_piece_of_block(a.groups, size, blockIdx.x);
  if (piece.expert < 0) return;
  const int lane = threadIdx.x & (lanes - 1), vectors = static_cast<int>(a.width / V);
  const int groups = LayerNormTuning::threads / lanes;
  const float per = 1.0f / static_cast<float>(a.width);
  float d_weight[Steps][V] = {}, d_bias[Steps][V] = {}, w[Steps][V];
#pragma unroll
  for (int s = 0; s < Steps; ++s)
    if (lane + s * lanes < vectors)
      read_floats(a.weight + piece.expert * a.width + (lane + s * lanes) * V, w[s]);
    else
#pragma unroll
      for (int c = 0; c < V; ++c) w[s][c] = 0;
  for (int64_t first = piece.begin; first < piece.end; first += groups) {
    const int64_t row = first + threadIdx.x / lanes;
    const bool live = row < piece.end;
    RowShare<T, V, Steps> z, grad;
    z.read(a.x, row, vectors, lane, lanes, live);
    grad.read(a.grad, row, vectors, lane, lanes, live);
    const float rstd = z.normalise(vectors, lane, lanes, a.eps);
    const float mean = per * grad.sum(vectors, lane, lanes, [&](int s, int c) { return grad.at[s][c] * w[s][c]; });
    const float along =
        per * grad.sum(vectors, lane, lanes, [&](int s, int c) { return grad.at[s][c] * w[s][c] * z.at[s][c]; });
    if (!live) continue;
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      const int v = lane + s * lanes;
      if (v >= vectors) continue;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        d_weight[s][c] = fmaf(grad.at[s][c], z.at[s][c], d_weight[s][c]);
        d_bias[s][c] += grad.at[s][c];
      }
      Pack<T, V> d_x;
      d_x.write([&](int c) { return rstd * (fmaf(grad.at[s][c], w[s][c], -mean) - z.at[s][c] * along); });
      static_cast<Pack<T, V>*>(a.d_x)[row * vectors + v] = d_x;
    }
  }
  const int warp = threadIdx.x / 32;
  const auto join = [&](float(&sums)[Steps][V], int which) {
#pragma unroll
    for (int s = 0; s < Steps; ++s)
#pragma unroll
      for (int c = 0; c < V; ++c) {
        for (int offset = lanes; offset < 32; offset *= 2) sums[s][c] += __shfl_xor_sync(whole_warp, sums[s][c], offset);
        if (threadIdx.x % 32 == static_cast<unsigned>(lane) && lane + s * lanes < vectors)
          parts[warp * a.width + (lane + s * lanes) * V + c] = sums[s][c];
      }
    __syncthreads();
    for (int c = threadIdx.x; c < a.width; c += LayerNormTuning::threads) {
      float all = 0;
      for (int i = 0; i < LayerNormTuning::warps; ++i) all += parts[i * a.width + c];
      a.partial[(int64_t(which) * gridDim.x + blockIdx.x) * a.width + c] = all;
    }
    __syncthreads();
  };
  join(d_weight, 0);
  join(d_bias, 1);
}

/// Calls f<T, V, Steps>(lanes).
template <class F>
cudaError_t with_layer_norm(Type type, int64_t width, F&& f) {
  return with_type(type, [&]<class T>(T) {
    constexpr int V = 16 / sizeof(T);
    const LayerNormLanes row = layer_norm_lanes(width / V);
    switch (row.steps) {
      case 1: f.template operator()<T, V, 1>(row.lanes); break;
      case 2: f.template operator()<T, V, 2>(row.lanes); break;
      case 3: f.template operator()<T, V, 3>(row.lanes); break;
      default: f.template operator()<T, V, 4>(row.lanes);
    }
    return cudaGetLastError();
  });
}

}  // namespace detail

/// One launch.
inline cudaError_t layer_norm(const LayerNorm& a, cudaStream_t stream) {
  if (a.groups.items() == 0) return cudaSuccess;
  return detail::with_layer_norm(a.type, a.width, [&]<class T, int V, int Steps>(int lanes) {
    const int64_t rows = detail::LayerNormTuning::threads / lanes, blocks = (a.groups.items() + rows - 1) / rows;
    detail::layer_norm<T, V, Steps>
        <<<static_cast<unsigned>(blocks), detail::LayerNormTuning::threads, 0, stream>>>(a, lanes);
  });
}

/// Three launches.
inline cudaError_t layer_norm_backward(const LayerNormBackward& a, cudaStream_t stream) {
  const int64_t size = layer_norm_piece(a.groups.items());
  if (a.groups.items() > 0)
    if (const cudaError_t error =
            detail::with_layer_norm(a.type, a.width, [&]<class T, int V, int Steps>(int lanes) {
              const auto shared = static_cast<std::size_t>(detail::LayerNormTuning::warps * a.width) * sizeof(float);
              detail::layer_norm_backward<T, V, Steps><<<static_cast<unsigned>(a.groups.pieces(size)),
                                                         detail::LayerNormTuning::threads, shared, stream>>>(a, lanes,
                                                                                                             size);
            }))
      return error;
  ColumnSums sums{.groups = a.groups, .width = a.width, .partial = a.partial, .sums = a.d_weight};
  if (const cudaError_t error = detail::add_pieces_of<float>(sums, size, stream)) return error;
  sums.partial += a.groups.pieces(size) * a.width;
  sums.sums = a.d_bias;
  return detail::add_pieces_of<float>(sums, size, stream);
}

}  // namespace moecod::kernel
