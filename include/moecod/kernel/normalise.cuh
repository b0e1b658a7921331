#pragma once
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/device.cuh"
#include "moecod/kernel/pieces.cuh"

/// Batch normalisation of images sorted by expert: statistics of each expert over its own images, then ReLU if asked
/// for.
///
///     y = relu((x - mean_e) / sqrt(var_e + eps) * weight_e + bias_e)
/// Moments come piece by piece (from the convolution's epilogue, or from a pass over x) and are joined in float32 by
/// the formula of Chan et al. 1979, in the order of the pieces. One thread a channel joins, updates the running
/// statistics and leaves what the second pass multiplies with. An expert of a single value a channel uses its running
/// statistics and does not move them; one without images does nothing. Backward recomputes the sign that ReLU saw from
/// x. Bytes: forward x once more, and y; backward grad and x twice, d_x once.
namespace moecod::kernel {

namespace detail {

struct NormTuning {
  static constexpr int threads = 256, vector = 8;
  static constexpr int join_threads = 1024, join_warps = join_threads / 32;
};

/// How a block's threads lie over vectors of channels and items.
struct NormLanes {
  int vectors, lanes, items;  // of 8 channels; threads along them; items at once
  bool used;
  __device__ explicit NormLanes(int channels)
      : vectors(channels / NormTuning::vector),
        lanes(min(vectors, NormTuning::threads)),
        items(NormTuning::threads / lanes),
        used(static_cast<int>(threadIdx.x) < items * lanes) {}
  __device__ int item() const { return threadIdx.x / lanes; }
  __device__ int lane() const { return threadIdx.x % lanes; }
};

using NormVector = Pack<__nv_bfloat16, NormTuning::vector>;

__device__ __forceinline__ void read_vector(const void* x, int64_t at, float (&to)[NormTuning::vector]) {
  static_cast<const NormVector*>(x)[at].read([&](int c, float v) { to[c] = v; });
}

/// Two sums a channel over a block's items, in shared memory [items][channels of `lanes` vectors][2], added in order.
__device__ __forceinline__ void add_items(const NormLanes& at, const float (&first)[NormTuning::vector],
                                          const float (&second)[NormTuning::vector], float2* shared) {
  constexpr int each = NormTuning::vector;
  __syncthreads();
  if (at.used)
#pragma unroll
    for (int c = 0; c < each; ++c) shared[threadIdx.x * each + c] = {first[c], second[c]};
  __syncthreads();
  for (int c = threadIdx.x; c < at.lanes * each; c += NormTuning::threads) {
    float2 sum = shared[c];
    for (int i = 1; i < at.items; ++i) {
      sum.x += shared[i * at.lanes * each + c].x;
      sum.y += shared[i * at.lanes * each + c].y;
    }
    shared[c] = sum;
  }
  __syncthreads();
}

/// Moments of a piece, about its first item.
static __global__ void __launch_bounds__(NormTuning::threads) take_moments(const Normalise a, float* moments) {
  __shared__ float2 shared[NormTuning::threads * NormTuning::vector];
  const Piece& piece = find_piece_of_block(a.groups, norm_piece(a.groups.items()), blockIdx.x);
  if (piece.expert < 0) return;
  const NormLanes at(a.channels);
  for (int v0 = 0; v0 < at.vectors; v0 += at.lanes) {
    const int v = v0 + at.lane();
    float base[NormTuning::vector]{}, first[NormTuning::vector]{}, second[NormTuning::vector]{};
    if (at.used && v < at.vectors) {
      read_vector(a.x, piece.begin * at.vectors + v, base);
      for (int64_t i = piece.begin + at.item(); i < piece.end; i += at.items) {
        float x[NormTuning::vector];
        read_vector(a.x, i * at.vectors + v, x);
#pragma unroll
        for (int c = 0; c < NormTuning::vector; ++c) {
          x[c] -= base[c];
          first[c] += x[c];
          second[c] += x[c] * x[c];
        }
      }
    }
    add_items(at, first, second, shared);
    const auto n = static_cast<float>(piece.end - piece.begin);
    float* out = moments + int64_t(blockIdx.x) * 2 * a.channels + v0 * NormTuning::vector;
    for (int c = threadIdx.x; c < at.lanes * NormTuning::vector && v0 * NormTuning::vector + c < a.channels;
         c += NormTuning::threads) {
      const float2 sum = shared[c];
      const float mean = sum.x / n;
      const auto* x = static_cast<const __nv_bfloat16*>(a.x) + piece.begin * a.channels + v0 * NormTuning::vector;
      out[c] = to_float(x[c]) + mean;
      out[a.channels + c] = fmaxf(sum.y - sum.x * mean, 0);
    }
  }
}

/// Which of an expert's pieces a warp joins, and how many warps have some.
struct JoinShare {
  int64_t from, to;
  int busy;
  __device__ JoinShare(const Piece& piece, int warp) {
    const int64_t own = (piece.count + NormTuning::join_warps - 1) / NormTuning::join_warps;
    from = warp * own;
    to = from + own < piece.count ? from + own : piece.count;
    busy = own > 0 ? static_cast<int>((piece.count + own - 1) / own) : 0;
  }
};

/// Joins an expert's moments: 32 channels a block, each warp over a share of the pieces.
static __global__ void __launch_bounds__(NormTuning::join_threads) join_moments(const Normalise a) {
  __shared__ float part[3][NormTuning::join_warps][32];
  const int e = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Piece& piece = pieces_of_block(a.groups, e, a.piece);
  const int c = blockIdx.x * 32 + lane;
  const int64_t at = int64_t(e) * a.channels + c;
  // Asked for now, they are there when they are needed.
  const bool last = warp == 0 && c < a.channels;
  const float running_mean = last ? a.running_mean[at] : 0, running_var = last ? a.running_var[at] : 0;
  const auto items = static_cast<float>(piece.end - piece.begin);
  const JoinShare share(piece, warp);
  const bool batch = a.batch_statistics && piece.end - piece.begin > 1;
  float n = 0, mean = 0, squares = 0;
  const auto join = [&](float n2, float mean2, float squares2) {
    if (n2 == 0) return;
    const float sum = n + n2, delta = mean2 - mean, part2 = n2 / sum;
    mean += delta * part2;
    squares += squares2 + delta * delta * n * part2;
    n = sum;
  };
  if (batch && c < a.channels) {
#pragma unroll 4
    for (int64_t p = share.from; p < share.to; ++p) {
      const int64_t left = piece.end - piece.begin - p * a.piece;
      const float* moments = a.moments + (piece.first + p) * 2 * a.channels + c;
      join(static_cast<float>(left < a.piece ? left : a.piece), moments[0], moments[a.channels]);
    }
  }
  part[0][warp][lane] = n;
  part[1][warp][lane] = mean;
  part[2][warp][lane] = squares;
  __syncthreads();
  if (warp > 0 || c >= a.channels) return;
  for (int w = 1; w < share.busy; ++w) join(part[0][w][lane], part[1][w][lane], part[2][w][lane]);
  float variance = 0;
  if (batch) {
    variance = squares / items;
    if (a.moves) {
      a.running_mean[at] = running_mean + a.momentum * (mean - running_mean);
      a.running_var[at] = running_var + a.momentum * (squares / (items - 1) - running_var);
      if (c == 0) a.tracked[e] += 1;
    }
  } else {
    mean = running_mean;
    variance = running_var;
  }
  float* used = a.used + int64_t(e) * 2 * a.channels + c;
  used[0] = mean;
  used[a.channels] = rsqrtf(variance + a.eps);
}

/// Scale and shift of a vector of channels.
struct NormScale {
  float scale[NormTuning::vector], shift[NormTuning::vector];
  float mean[NormTuning::vector], inverse[NormTuning::vector];
  __device__ NormScale(const float* used, const float* weight, const float* bias, int e, int channels, int v) {
    const int64_t at = int64_t(e) * channels + v * NormTuning::vector;
    float w[NormTuning::vector], b[NormTuning::vector];
    read_floats(used + at + int64_t(e) * channels, mean);
    read_floats(used + at + int64_t(e + 1) * channels, inverse);
    read_floats(weight + at, w);
    read_floats(bias + at, b);
#pragma unroll
    for (int c = 0; c < NormTuning::vector; ++c) {
      scale[c] = inverse[c] * w[c];
      shift[c] = b[c] - mean[c] * scale[c];
    }
  }
};

static __global__ void __launch_bounds__(NormTuning::threads) apply_norm(const Normalise a) {
  const Piece& piece = find_piece_of_block(a.groups, norm_piece(a.groups.items()), blockIdx.x);
  if (piece.expert < 0) return;
  const NormLanes at(a.channels);
  if (!at.used) return;
  for (int v = at.lane(); v < at.vectors; v += at.lanes) {
    const NormScale norm(a.used, a.weight, a.bias, piece.expert, a.channels, v);
#pragma unroll 4
    for (int64_t i = piece.begin + at.item(); i < piece.end; i += at.items) {
      float x[NormTuning::vector];
      read_vector(a.x, i * at.vectors + v, x);
#pragma unroll
      for (int c = 0; c < NormTuning::vector; ++c) {
        x[c] = x[c] * norm.scale[c] + norm.shift[c];
        if (a.relu) x[c] = x[c] < 0 ? 0 : x[c];  // NaN stays
      }
      NormVector out;
      out.write([&](int c) { return x[c]; });
      static_cast<NormVector*>(a.y)[i * at.vectors + v] = out;
    }
  }
}

/// Sums over a piece of the gradient, and of the gradient times the normalised x.
static __global__ void __launch_bounds__(NormTuning::threads) sum_norm_gradients(const NormaliseBackward a) {
  __shared__ float2 shared[NormTuning::threads * NormTuning::vector];
  const Piece& piece = find_piece_of_block(a.groups, norm_piece(a.groups.items()), blockIdx.x);
  if (piece.expert < 0) return;
  const NormLanes at(a.channels);
  for (int v0 = 0; v0 < at.vectors; v0 += at.lanes) {
    const int v = v0 + at.lane();
    float first[NormTuning::vector]{}, second[NormTuning::vector]{};
    if (at.used && v < at.vectors) {
      const NormScale norm(a.used, a.weight, a.bias, piece.expert, a.channels, v);
#pragma unroll 2
      for (int64_t i = piece.begin + at.item(); i < piece.end; i += at.items) {
        float x[NormTuning::vector], d[NormTuning::vector];
        read_vector(a.x, i * at.vectors + v, x);
        read_vector(a.grad, i * at.vectors + v, d);
#pragma unroll
        for (int c = 0; c < NormTuning::vector; ++c) {
          if (a.relu && x[c] * norm.scale[c] + norm.shift[c] <= 0) d[c] = 0;
          first[c] += d[c];
          second[c] += d[c] * (x[c] - norm.mean[c]);
        }
      }
    }
    add_items(at, first, second, shared);
    float* out = a.partial + int64_t(blockIdx.x) * 2 * a.channels + v0 * NormTuning::vector;
    for (int c = threadIdx.x; c < at.lanes * NormTuning::vector && v0 * NormTuning::vector + c < a.channels;
         c += NormTuning::threads) {
      out[c] = shared[c].x;
      out[a.channels + c] = shared[c].y;
    }
  }
}

static __global__ void __launch_bounds__(NormTuning::join_threads) join_norm_gradients(const NormaliseBackward a) {
  __shared__ float2 part[NormTuning::join_warps][32];
  const int e = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Piece& piece = pieces_of_block(a.groups, e, norm_piece(a.groups.items()));
  const int c = blockIdx.x * 32 + lane;
  const JoinShare share(piece, warp);
  float2 sum{0, 0};
  if (c < a.channels) {
#pragma unroll 4
    for (int64_t p = share.from; p < share.to; ++p) {
      const float* partial = a.partial + (piece.first + p) * 2 * a.channels + c;
      sum.x += partial[0];
      sum.y += partial[a.channels];
    }
  }
  part[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= a.channels) return;
  for (int w = 1; w < share.busy; ++w) {
    sum.x += part[w][lane].x;
    sum.y += part[w][lane].y;
  }
  const int64_t at = int64_t(e) * a.channels + c;
  a.d_bias[at] = sum.x;
  a.d_weight[at] = sum.y * a.used[(2 * int64_t(e) + 1) * a.channels + c];
}

static __global__ void __launch_bounds__(NormTuning::threads) apply_norm_backward(const NormaliseBackward a) {
  const Piece& piece = find_piece_of_block(a.groups, norm_piece(a.groups.items()), blockIdx.x);
  if (piece.expert < 0) return;
  const auto items =
      static_cast<float>(a.groups.each * (a.groups.offsets[piece.expert + 1] - a.groups.offsets[piece.expert]));
  const NormLanes at(a.channels);
  if (!at.used) return;
  const bool batch = a.batch_statistics && items > 1;
  for (int v = at.lane(); v < at.vectors; v += at.lanes) {
    const NormScale norm(a.used, a.weight, a.bias, piece.expert, a.channels, v);
    // d_x = scale * d + slope * x + constant
    float slope[NormTuning::vector], constant[NormTuning::vector], d_weight[NormTuning::vector], d_bias[NormTuning::vector];
    read_floats(a.d_weight + int64_t(piece.expert) * a.channels + v * NormTuning::vector, d_weight);
    read_floats(a.d_bias + int64_t(piece.expert) * a.channels + v * NormTuning::vector, d_bias);
#pragma unroll
    for (int c = 0; c < NormTuning::vector; ++c) {
      slope[c] = batch ? -norm.scale[c] * norm.inverse[c] * d_weight[c] / items : 0;
      constant[c] = batch ? -norm.scale[c] * d_bias[c] / items - slope[c] * norm.mean[c] : 0;
    }
#pragma unroll 2
    for (int64_t i = piece.begin + at.item(); i < piece.end; i += at.items) {
      float x[NormTuning::vector], d[NormTuning::vector];
      read_vector(a.x, i * at.vectors + v, x);
      read_vector(a.grad, i * at.vectors + v, d);
#pragma unroll
      for (int c = 0; c < NormTuning::vector; ++c) {
        if (a.relu && x[c] * norm.scale[c] + norm.shift[c] <= 0) d[c] = 0;
        d[c] = norm.scale[c] * d[c] + slope[c] * x[c] + constant[c];
      }
      NormVector out;
      out.write([&](int c) { return d[c]; });
      static_cast<NormVector*>(a.d_x)[i * at.vectors + v] = out;
    }
  }
}

}  // namespace detail

/// One launch: `moments` [groups.pieces(norm_piece), 2, C], where no convolution has taken them.
inline cudaError_t moments(const Normalise& a, float* moments, cudaStream_t stream) {
  if (a.groups.items() == 0) return cudaSuccess;
  const auto pieces = static_cast<unsigned>(a.groups.pieces(norm_piece(a.groups.items())));
  detail::take_moments<<<pieces, detail::NormTuning::threads, 0, stream>>>(a, moments);
  return cudaGetLastError();
}

/// Two launches.
inline cudaError_t normalise(const Normalise& a, cudaStream_t stream) {
  const dim3 join((a.channels + 31) / 32, a.groups.experts);
  detail::join_moments<<<join, detail::NormTuning::join_threads, 0, stream>>>(a);
  if (const auto pieces = static_cast<unsigned>(a.groups.pieces(norm_piece(a.groups.items()))))
    detail::apply_norm<<<pieces, detail::NormTuning::threads, 0, stream>>>(a);
  return cudaGetLastError();
}

/// Three launches.
inline cudaError_t normalise_backward(const NormaliseBackward& a, cudaStream_t stream) {
  const auto pieces = static_cast<unsigned>(a.groups.pieces(norm_piece(a.groups.items())));
  const dim3 join((a.channels + 31) / 32, a.groups.experts);
  if (pieces) detail::sum_norm_gradients<<<pieces, detail::NormTuning::threads, 0, stream>>>(a);
  detail::join_norm_gradients<<<join, detail::NormTuning::join_threads, 0, stream>>>(a);
  if (pieces) detail::apply_norm_backward<<<pieces, detail::NormTuning::threads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace moecod::kernel
