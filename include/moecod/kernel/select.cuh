#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Select: scores, choice, gate weights and counts of a batch in one pass over its logits; and the backward of it.
///
///     scores = softmax(logits + logit_bias) or sigmoid(...)
///     chosen = the K largest of scores + selection_bias, ties to the lower index
///     weights by the gate; counts[e] = rows that chose e
///
/// A group of lanes takes a row, eight or sixteen experts a lane, and finds the best K times. Sums over a row are added in
/// the order in which LibTorch's softmax adds them, so the scores, and with them the choice, are its bit for bit.
/// Counts are sums of integers, whatever order the blocks come in. Bytes: logits once, scores once, and the [N, K].
namespace moecod::kernel {

namespace detail {

struct SelectTuning {
  static constexpr int threads = 256;
  static constexpr int staged_lanes = 4;
  /// Blocks a multiprocessor: bounds the registers.
  template <int Lanes, int PerLane>
  static constexpr int blocks = PerLane > 8 ? 4 : 5;
  template <int Lanes, int PerLane>
  static constexpr int forward = resident<threads, blocks<Lanes, PerLane>>;
  static constexpr int backward_blocks = 4;
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
template <int Lanes, int per_lane>
__device__ __forceinline__ float sum_of_row(const float (&x)[per_lane]) {
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

/// Full: E is Lanes * PerLane, so no lane has to ask whether it has an expert.
template <int Lanes, int PerLane, int MaxK, bool Full>
__global__ void __launch_bounds__(SelectTuning::threads, SelectTuning::forward<Lanes, PerLane>)
    select_forward(const SelectForward a) {
  constexpr int warps = SelectTuning::threads / 32, per_warp = 32 / Lanes;  // rows
  constexpr int lane_slots = (MaxK + Lanes - 1) / Lanes;                    // slots of a row that one lane finishes
  // Short rows go through shared memory: their lanes would fetch and write small pieces.
  constexpr bool staged = Lanes <= SelectTuning::staged_lanes;
  __shared__ float rows[staged ? warps : 1][staged ? per_warp * (Lanes * PerLane + 1) : 1];
  __shared__ int histogram[Lanes * PerLane];
  for (int e = threadIdx.x; e < a.experts; e += SelectTuning::threads) histogram[e] = 0;
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % Lanes, group = threadIdx.x % 32 / Lanes;
  const int stride = a.experts | 1;  // odd, against bank conflicts
  float* stage = rows[staged ? warp : 0];
  const bool softmax = a.gate != Gate::sigmoid;
  const auto there = [&](int j) { return Full || lane + Lanes * j < a.experts; };
  const int64_t step = int64_t(gridDim.x) * warps * per_warp;
  for (int64_t first = (int64_t(blockIdx.x) * warps + warp) * per_warp; first < a.rows; first += step) {
    const bool live = first + group < a.rows;  // all lanes stay for the shuffles
    const int64_t n = live ? first + group : a.rows - 1;
    // Calls f(element of the warp's rows, its place in shared memory) for this thread's share.
    const auto for_each_element = [&](auto&& f) {
      const int size = static_cast<int>(a.rows - first < per_warp ? a.rows - first : per_warp) * a.experts;
      int row = threadIdx.x % 32 / a.experts, e = threadIdx.x % 32 % a.experts;
      for (int i = threadIdx.x % 32; i < size; i += 32) {
        f(first * a.experts + i, row * stride + e);
        row += 32 / a.experts;
        e += 32 % a.experts;
        if (e >= a.experts) e -= a.experts, ++row;
      }
    };
    if constexpr (staged) {
      for_each_element([&](int64_t from, int to) { stage[to] = a.logits[from]; });
      __syncwarp();
    }
    float* own = stage + group * stride;
    const float* logits = staged ? own : a.logits + n * a.experts;

    // Loads first and conditions that hold for all rows outside of the loops, so that the loads are in flight together.
    float score[PerLane], top = 0.0f, total = 1.0f;
#pragma unroll
    for (int j = 0; j < PerLane; ++j) score[j] = there(j) ? logits[lane + Lanes * j] : -INFINITY;
    if (a.logit_bias) {
#pragma unroll
      for (int j = 0; j < PerLane; ++j)
        if (there(j)) score[j] += a.logit_bias[lane + Lanes * j];
    }
    if (softmax) {
      top = score[0];
#pragma unroll
      for (int j = 1; j < PerLane; ++j) top = fmaxf(top, score[j]);
      top = max_of_lanes<Lanes>(top);
      bool any_tiny = false;
#pragma unroll
      for (int j = 0; j < PerLane; ++j) {
        score[j] = expf(score[j] - top);
        any_tiny |= tiny(score[j]);
      }
      total = sum_of_row<Lanes>(score);
      const float reciprocal = 1.0f / total;
      if (any_tiny) {
#pragma unroll
        for (int j = 0; j < PerLane; ++j)
          score[j] = tiny(score[j]) ? score[j] / total : divide(score[j], total, reciprocal);
      } else {
#pragma unroll
        for (int j = 0; j < PerLane; ++j) score[j] = divide(score[j], total, reciprocal);
      }
    } else {
#pragma unroll
      for (int j = 0; j < PerLane; ++j) score[j] = 1.0f / (1.0f + expf(-score[j]));
    }
    if (!staged && live) {
#pragma unroll
      for (int j = 0; j < PerLane; ++j)
        if (there(j)) a.scores[n * a.experts + lane + Lanes * j] = score[j];
    }

    unsigned key[PerLane];  // in the order of what is chosen by; 0: not to be chosen
    if (a.selection_bias) {
#pragma unroll
      for (int j = 0; j < PerLane; ++j)
        key[j] = there(j) ? ordered(score[j] + a.selection_bias[lane + Lanes * j]) : 0;
    } else {
#pragma unroll
      for (int j = 0; j < PerLane; ++j) key[j] = there(j) ? __float_as_uint(score[j]) + 1 : 0;  // no score is negative
    }
    // Neighbouring experts in order of their keys, so that a search sees half of them: first[p] before second[p].
    constexpr int pairs = PerLane / 2;
    unsigned first_key[pairs], second_key[pairs];
    int first_expert[pairs];
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
      const bool swap = key[2 * p + 1] > key[2 * p];
      first_key[p] = swap ? key[2 * p + 1] : key[2 * p];
      second_key[p] = swap ? key[2 * p] : key[2 * p + 1];
      first_expert[p] = lane + Lanes * (swap ? 2 * p + 1 : 2 * p);
    }
    int chosen[lane_slots];
#pragma unroll
    for (int k = 0; k < MaxK; ++k) {
      if (k >= a.per_row) break;
      unsigned best = first_key[0];
#pragma unroll
      for (int p = 1; p < pairs; ++p) best = max(best, first_key[p]);
      best = max_of_lanes<Lanes>(best);
      int e = INT_MAX;
#pragma unroll
      for (int p = pairs - 1; p >= 0; --p)
        if (first_key[p] == best) e = first_expert[p];
      e = min_of_lanes<Lanes>(e);
#pragma unroll
      for (int p = 0; p < pairs; ++p)
        if (first_expert[p] == e) {
          first_key[p] = second_key[p];
          first_expert[p] = 2 * lane + Lanes * (4 * p + 1) - e;  // the other of the two
          second_key[p] = 0;
        }
      if (lane == k % Lanes) chosen[k / Lanes] = e;
    }

    // Slot k is finished by lane k % Lanes. x: what the weights are made of.
    float x[lane_slots], largest = -INFINITY, by = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      x[i] = 0.0f;
      if (lane + i * Lanes >= a.per_row) continue;
      x[i] = logits[chosen[i]];
      if (a.logit_bias) x[i] += a.logit_bias[chosen[i]];
      largest = fmaxf(largest, x[i]);
    }
    if (a.gate == Gate::top_k_softmax) top = max_of_lanes<Lanes>(largest);
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      if (lane + i * Lanes >= a.per_row) continue;
      x[i] = softmax ? expf(x[i] - top) : 1.0f / (1.0f + expf(-x[i]));
      by += x[i];
    }
    by = a.gate == Gate::softmax_top_k ? total : fmaxf(sum_of_lanes<Lanes>(by), 1e-20f);
#pragma unroll
    for (int i = 0; i < lane_slots; ++i) {
      const int k = lane + i * Lanes;
      if (k >= a.per_row || !live) continue;
      a.chosen[n * a.per_row + k] = chosen[i];
      a.weights[n * a.per_row + k] = x[i] / by;
      atomicAdd(&histogram[chosen[i]], 1);
    }

    if constexpr (staged) {
      __syncwarp();  // the group has read its logits
#pragma unroll
      for (int j = 0; j < PerLane; ++j)
        if (there(j)) own[lane + Lanes * j] = score[j];
      __syncwarp();
      for_each_element([&](int64_t to, int from) { a.scores[to] = stage[from]; });
      __syncwarp();
    }
  }

  __syncthreads();
  for (int e = threadIdx.x; e < a.experts; e += SelectTuning::threads)
    if (histogram[e] > 0) atomicAdd(reinterpret_cast<unsigned long long*>(a.counts) + e, histogram[e]);
}

template <int Lanes, int per_lane>
__global__ void __launch_bounds__(SelectTuning::threads, resident<SelectTuning::threads, SelectTuning::backward_blocks>)
    select_backward(const SelectBackward a) {
  constexpr int groups = SelectTuning::threads / Lanes;
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

/// Calls f with the lanes that a row of `experts` takes and the experts of a lane, as constants; at most `per_lane`.
template <int per_lane, class F>
cudaError_t with_lanes(int experts, F&& f) {
  if (experts <= 8) return f.template operator()<1, 8>();
  if (experts <= 16) return f.template operator()<2, 8>();
  if (experts <= 32) return f.template operator()<4, 8>();
  if (experts <= 64) return f.template operator()<8, 8>();
  if (experts <= 128) return f.template operator()<128 / per_lane, per_lane>();
  return f.template operator()<256 / per_lane, per_lane>();
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
  return detail::with_lanes<16>(a.experts, [&]<int Lanes, int PerLane>() {
    using detail::SelectTuning;
    unsigned blocks = 0;
    if (const cudaError_t error =
            detail::select_blocks(a.rows, Lanes, SelectTuning::blocks<Lanes, PerLane>, &blocks))
      return error;
    const bool full = a.experts == Lanes * PerLane, few = a.per_row <= 2;
    const auto kernel = full ? (few ? detail::select_forward<Lanes, PerLane, 2, true>
                                    : detail::select_forward<Lanes, PerLane, max_per_row, true>)
                             : (few ? detail::select_forward<Lanes, PerLane, 2, false>
                                    : detail::select_forward<Lanes, PerLane, max_per_row, false>);
    kernel<<<blocks, SelectTuning::threads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

/// Launches one kernel.
inline cudaError_t select_backward(const SelectBackward& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  return detail::with_lanes<8>(a.experts, [&]<int Lanes, int PerLane>() {
    using detail::SelectTuning;
    unsigned blocks = 0;
    if (const cudaError_t error = detail::select_blocks(a.rows, Lanes, SelectTuning::backward_blocks, &blocks))
      return error;
    detail::select_backward<Lanes, PerLane><<<blocks, SelectTuning::threads, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace moecod::kernel
