#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Select: scores, choice, gate weights and counts of a batch in one pass over its logits; and the backward of it.
///
///     scores = softmax(logits + logit_bias) or sigmoid(...)
///     chosen = the K largest of scores + selection_bias, ties to the lower index
///     weights by the gate; counts[e] = rows that chose e
///
/// A group of lanes takes a row, eight experts a lane, and finds the best K times. Sums over a row are added in the
/// order in which LibTorch's softmax adds them, so the scores, and with them the choice, are its bit for bit.
/// Counts are sums of integers, whatever order the blocks come in. Bytes: logits once, scores once, and the [N, K].
namespace moecod::kernel {

namespace detail {

struct SelectTuning {
  static constexpr int threads = 256;
  /// Blocks a multiprocessor: bounds the registers.
  template <int Lanes>
  static constexpr int blocks = Lanes <= 4 ? 4 : 5;
  static constexpr int per_lane = 8;  // experts
  static constexpr int staged_lanes = 4;
};

/// Unsigned integers in the order of floats, above 0; NaN comes first, as in a descending sort of LibTorch.
__device__ __forceinline__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0xffffffffu : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

/// x / by, rounded as IEEE division rounds, from the reciprocal of `by`, for x in [0, 1] and by in [1, 2^24]: two
/// corrections in place of the two slow instructions and the branch that every division takes. Not for `tiny` x, with
/// which the corrections would leave the range of normal numbers.
__device__ __forceinline__ float divide(float x, float by, float reciprocal) {
  float q = x * reciprocal;
  q = fmaf(fmaf(-q, by, x), reciprocal, q);
  return fmaf(fmaf(-q, by, x), reciprocal, q);
}
__device__ __forceinline__ bool tiny(float x) { return x > 0.0f && x < 1e-30f; }

/// The sum over a row whose expert lane + Lanes * j is x[j].
template <int Lanes>
__device__ __forceinline__ float sum_of_row(const float (&x)[SelectTuning::per_lane]) {
  constexpr int per_lane = SelectTuning::per_lane;
  // LibTorch has 32 lanes, each of which adds its experts in order before the lanes are added by halving.
  constexpr int columns = Lanes * per_lane < 32 ? per_lane : 32 / Lanes;
  float column[columns];
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    column[c] = x[c];
#pragma unroll
    for (int j = c + columns; j < per_lane; j += columns) column[c] += x[j];
  }
#pragma unroll
  for (int half = columns / 2; half > 0; half /= 2)
#pragma unroll
    for (int c = 0; c < half; ++c) column[c] += column[c + half];
  return sum_of_lanes<Lanes>(column[0]);
}

template <int Lanes, int MaxK>
__global__ void __launch_bounds__(SelectTuning::threads, resident<SelectTuning::threads, SelectTuning::blocks<Lanes>>)
    select_forward(const SelectForward a) {
  constexpr int threads = SelectTuning::threads, per_lane = SelectTuning::per_lane, groups = threads / Lanes;
  constexpr int lane_slots = (MaxK + Lanes - 1) / Lanes;  // slots of a row that one lane finishes
  // Short rows go through shared memory: their lanes would fetch and write small pieces.
  constexpr bool staged = Lanes <= SelectTuning::staged_lanes;
  __shared__ float rows[staged ? groups * (Lanes * per_lane + 1) : 1];
  __shared__ int histogram[Lanes * per_lane];
  for (int e = threadIdx.x; e < a.experts; e += threads) histogram[e] = 0;
  __syncthreads();

  const int lane = threadIdx.x % Lanes, group = threadIdx.x / Lanes;
  const int stride = a.experts | 1;  // odd, against bank conflicts
  const bool softmax = a.gate != Gate::sigmoid;
  for (int64_t first = int64_t(blockIdx.x) * groups; first < a.rows; first += int64_t(gridDim.x) * groups) {
    const bool live = first + group < a.rows;  // all lanes stay for the shuffles
    const int64_t n = live ? first + group : a.rows - 1;
    // Calls f(element of the block's rows, its place in shared memory) for this thread's share.
    const auto for_each_element = [&](auto&& f) {
      const int size = static_cast<int>(a.rows - first < groups ? a.rows - first : groups) * a.experts;
      int row = threadIdx.x / a.experts, e = threadIdx.x % a.experts;
      for (int i = threadIdx.x; i < size; i += threads) {
        f(first * a.experts + i, row * stride + e);
        row += threads / a.experts;
        e += threads % a.experts;
        if (e >= a.experts) e -= a.experts, ++row;
      }
    };
    if constexpr (staged) {
      for_each_element([&](int64_t from, int to) { rows[to] = a.logits[from]; });
      __syncthreads();
    }
    float* own = rows + group * stride;
    const float* logits = staged ? own : a.logits + n * a.experts;

    // Loads first and conditions that hold for all rows outside of the loops, so that the loads are in flight together.
    float score[per_lane], top = 0.0f, total = 1.0f, reciprocal = 1.0f;
#pragma unroll
    for (int j = 0; j < per_lane; ++j) {
      const int e = lane + Lanes * j;
      score[j] = e < a.experts ? logits[e] : -INFINITY;
    }
    if (a.logit_bias) {
#pragma unroll
      for (int j = 0; j < per_lane; ++j)
        if (const int e = lane + Lanes * j; e < a.experts) score[j] += a.logit_bias[e];
    }
    if (softmax) {
      top = score[0];
#pragma unroll
      for (int j = 1; j < per_lane; ++j) top = fmaxf(top, score[j]);
      top = max_of_lanes<Lanes>(top);
      bool any_tiny = false;
#pragma unroll
      for (int j = 0; j < per_lane; ++j) {
        score[j] = expf(score[j] - top);
        any_tiny |= tiny(score[j]);
      }
      total = sum_of_row<Lanes>(score);
      reciprocal = 1.0f / total;
      if (any_tiny) {
#pragma unroll
        for (int j = 0; j < per_lane; ++j) score[j] = score[j] / total;
      } else {
#pragma unroll
        for (int j = 0; j < per_lane; ++j) score[j] = divide(score[j], total, reciprocal);
      }
    } else {
#pragma unroll
      for (int j = 0; j < per_lane; ++j) score[j] = 1.0f / (1.0f + expf(-score[j]));
    }
    unsigned key[per_lane];
#pragma unroll
    for (int j = 0; j < per_lane; ++j) key[j] = __float_as_uint(score[j]);
    if (a.selection_bias) {
#pragma unroll
      for (int j = 0; j < per_lane; ++j)
        if (const int e = lane + Lanes * j; e < a.experts)
          key[j] = __float_as_uint(score[j] + a.selection_bias[e]);
    }
#pragma unroll
    for (int j = 0; j < per_lane; ++j) {
      const int e = lane + Lanes * j;
      key[j] = e < a.experts ? ordered(__uint_as_float(key[j])) : 0;
      if (!staged && live && e < a.experts) a.scores[n * a.experts + e] = score[j];
    }

    int chosen[lane_slots];
#pragma unroll
    for (int k = 0; k < MaxK; ++k) {
      if (k >= a.per_row) break;
      unsigned best = key[0];
#pragma unroll
      for (int j = 1; j < per_lane; ++j) best = max(best, key[j]);
      best = max_of_lanes<Lanes>(best);
      // Every lane takes its first expert of that key out; those whose index is not the lowest put it back.
      int mine = -1;
#pragma unroll
      for (int j = 0; j < per_lane; ++j)
        if (mine < 0 && key[j] == best) {
          mine = lane + Lanes * j;
          key[j] = 0;
        }
      const int e = min_of_lanes<Lanes>(mine < 0 ? INT_MAX : mine);
      if (mine >= 0 && mine != e) {
#pragma unroll
        for (int j = 0; j < per_lane; ++j)
          if (mine == lane + Lanes * j) key[j] = best;
      }
      if (lane == k % Lanes) chosen[k / Lanes] = e;
    }

    // Slot k is finished by lane k % Lanes.
    float x[lane_slots], weight[lane_slots], best = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      if (lane + i * Lanes >= a.per_row) continue;
      x[i] = logits[chosen[i]];
      if (a.logit_bias) x[i] += a.logit_bias[chosen[i]];
      weight[i] = softmax ? expf(x[i] - top) / total : 1.0f / (1.0f + expf(-x[i]));
      best = fmaxf(best, x[i]);
      sum += weight[i];
    }
    if (a.gate == Gate::top_k_softmax) {
      best = max_of_lanes<Lanes>(best);
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < lane_slots; ++i) {
        if (lane + i * Lanes >= a.per_row) continue;
        weight[i] = expf(x[i] - best);
        sum += weight[i];
      }
    }
    const float by = a.gate == Gate::softmax_top_k ? 1.0f : fmaxf(sum_of_lanes<Lanes>(sum), 1e-20f);
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      const int k = lane + i * Lanes;
      if (k >= a.per_row || !live) continue;
      a.chosen[n * a.per_row + k] = chosen[i];
      a.weights[n * a.per_row + k] = weight[i] / by;
      atomicAdd(&histogram[chosen[i]], 1);
    }

    if constexpr (staged) {
      __syncwarp();  // the group has read its logits
#pragma unroll
      for (int j = 0; j < per_lane; ++j)
        if (const int e = lane + Lanes * j; e < a.experts && live) own[e] = score[j];
      __syncthreads();
      for_each_element([&](int64_t to, int from) { a.scores[to] = rows[from]; });
      __syncthreads();
    }
  }

  __syncthreads();
  for (int e = threadIdx.x; e < a.experts; e += threads)
    if (histogram[e] > 0) atomicAdd(reinterpret_cast<unsigned long long*>(a.counts) + e, histogram[e]);
}

template <int Lanes>
__global__ void __launch_bounds__(SelectTuning::threads, resident<SelectTuning::threads, SelectTuning::blocks<1>>)
    select_backward(const SelectBackward a) {
  constexpr int per_lane = SelectTuning::per_lane, groups = SelectTuning::threads / Lanes;
  constexpr int lane_slots = (max_per_row + Lanes - 1) / Lanes;
  const int lane = threadIdx.x % Lanes, group = threadIdx.x / Lanes;
  const bool all_scores = a.d_scores || a.gate == Gate::softmax_top_k;  // else only those of the chosen count
  for (int64_t first = int64_t(blockIdx.x) * groups; first < a.rows; first += int64_t(gridDim.x) * groups) {
    const bool live = first + group < a.rows;
    const int64_t n = live ? first + group : a.rows - 1;
    const float* scores = a.scores + n * a.experts;

    float score[per_lane], grad[per_lane];  // grad: of the scores
#pragma unroll
    for (int j = 0; j < per_lane; ++j) {
      const int e = lane + Lanes * j;
      const bool there = e < a.experts;
      score[j] = there && all_scores ? scores[e] : 0.0f;
      grad[j] = there && a.d_scores ? a.d_scores[n * a.experts + e] : 0.0f;
    }

    // What the weights add to a chosen expert's score, or under top_k_softmax to its logit.
    int chosen[lane_slots];
    float weight[lane_slots], extra[lane_slots], total = 0.0f, product = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      const int k = lane + i * Lanes;
      const bool there = k < a.per_row && a.d_weights;
      chosen[i] = there ? a.chosen[n * a.per_row + k] : -1;
      weight[i] = there ? a.weights[n * a.per_row + k] : 0.0f;
      extra[i] = there ? a.d_weights[n * a.per_row + k] : 0.0f;
      product += extra[i] * weight[i];
      if (there && a.gate == Gate::sigmoid) total += scores[chosen[i]];
    }
    if (a.gate != Gate::softmax_top_k) {
      product = sum_of_lanes<Lanes>(product);
      total = sum_of_lanes<Lanes>(total);
#pragma unroll
      for (int i = 0; i < lane_slots; ++i) {
        if (a.gate == Gate::top_k_softmax) {
          extra[i] = weight[i] * (extra[i] - product);
        } else {
          extra[i] = (extra[i] - (total >= 1e-20f ? product : 0.0f)) / fmaxf(total, 1e-20f);
        }
      }
    }

    float after[per_lane] = {};  // added to the gradients of the logits
#pragma unroll
    for (int k = 0; k < max_per_row; ++k) {
      if (k >= a.per_row) break;
      const int e = __shfl_sync(whole_warp, chosen[k / Lanes], k % Lanes, Lanes);
      const float more = __shfl_sync(whole_warp, extra[k / Lanes], k % Lanes, Lanes);
#pragma unroll
      for (int j = 0; j < per_lane; ++j)
        if (lane + Lanes * j == e) {
          if (a.gate == Gate::top_k_softmax) {
            after[j] = more;
          } else {
            grad[j] += more;
            if (!all_scores) score[j] = scores[e];
          }
        }
    }

    float dot = 0.0f;
    if (a.gate != Gate::sigmoid) {
#pragma unroll
      for (int j = 0; j < per_lane; ++j) dot += grad[j] * score[j];
      dot = sum_of_lanes<Lanes>(dot);
    }
#pragma unroll
    for (int j = 0; j < per_lane; ++j) {
      const int e = lane + Lanes * j;
      if (e >= a.experts || !live) continue;
      const float inner = a.gate == Gate::sigmoid ? grad[j] * (1.0f - score[j]) : grad[j] - dot;
      a.d_logits[n * a.experts + e] = score[j] * inner + after[j];
    }
  }
}

/// Calls f with the number of lanes that a row of `experts` takes, as a constant.
template <class F>
cudaError_t with_lanes(int experts, F&& f) {
  constexpr int per_lane = SelectTuning::per_lane;
  if (experts <= 1 * per_lane) return f.template operator()<1>();
  if (experts <= 2 * per_lane) return f.template operator()<2>();
  if (experts <= 4 * per_lane) return f.template operator()<4>();
  if (experts <= 8 * per_lane) return f.template operator()<8>();
  if (experts <= 16 * per_lane) return f.template operator()<16>();
  return f.template operator()<32>();
}

/// Enough blocks for the rows, and no more than run at once.
inline cudaError_t select_blocks(int64_t rows, int lanes, int per_multiprocessor, unsigned* blocks) {
  int count = 0;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  const int64_t groups = SelectTuning::threads / lanes, needed = (rows + groups - 1) / groups;
  const int64_t limit = int64_t(count) * per_multiprocessor;
  *blocks = static_cast<unsigned>(needed < limit ? needed : limit);
  return cudaSuccess;
}

}  // namespace detail

/// Launches one clearing of the counts and one kernel.
inline cudaError_t select_forward(const SelectForward& a, cudaStream_t stream) {
  if (const cudaError_t error = cudaMemsetAsync(a.counts, 0, sizeof(int64_t) * a.experts, stream)) return error;
  if (a.rows == 0) return cudaSuccess;
  return detail::with_lanes(a.experts, [&]<int Lanes>() {
    unsigned blocks = 0;
    if (const cudaError_t error = detail::select_blocks(a.rows, Lanes, detail::SelectTuning::blocks<Lanes>, &blocks))
      return error;
    const auto kernel = a.per_row <= 2   ? detail::select_forward<Lanes, 2>
                        : a.per_row <= 4 ? detail::select_forward<Lanes, 4>
                                         : detail::select_forward<Lanes, max_per_row>;
    kernel<<<blocks, detail::SelectTuning::threads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

/// Launches one kernel.
inline cudaError_t select_backward(const SelectBackward& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  return detail::with_lanes(a.experts, [&]<int Lanes>() {
    unsigned blocks = 0;
    if (const cudaError_t error = detail::select_blocks(a.rows, Lanes, detail::SelectTuning::blocks<1>, &blocks))
      return error;
    detail::select_backward<Lanes><<<blocks, detail::SelectTuning::threads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace moecod::kernel
