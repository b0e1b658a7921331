#pragma once
#include "moecod/kernel/arguments.hpp"
#include "moecod/kernel/device.cuh"

/// Backward passes of resampled maps: each sample of the input fetches what it gave to the outputs around it and adds in
/// a fixed order, where LibTorch's kernels let the outputs add to the inputs with atomics.
///
///     d_x[y, x] = sum over i, j of weight(i, y) weight(j, x) grad[i, j]
/// over the rows i and columns j that sample (y, x) had a part in, which are neighbours. The part of a sample in an
/// average or a bilinear mean is a product of two weights; in a maximum it is 1 where the output's index names it.
/// A sample of many outputs is shared by several lanes. Bytes: grad in once (overlapping windows meet in the caches), d_x out.
namespace moecod::kernel {

namespace detail {

struct ResampleTuning {
  static constexpr int threads = 256;
  static constexpr int taps_of_a_lane = 36;  // above it, more lanes share a sample
};

/// The outputs [begin, end) that a sample may have a part in.
struct Span {
  int begin, end;
};

/// One side of bilinear interpolation, in the arithmetic of LibTorch's forward pass.
struct BilinearSide {
  int in, out;
  bool align_corners;
  float scale;

  BilinearSide(int in, int out, bool align_corners)
      : in(in), out(out), align_corners(align_corners),
        scale(align_corners ? (out > 1 ? float(in - 1) / float(out - 1) : 0.0f) : float(in) / float(out)) {}

  __device__ float source(int i) const {
    return align_corners ? scale * float(i) : fmaxf(scale * (float(i) + 0.5f) - 0.5f, 0.0f);
  }
  __device__ float weight(int i, int y) const {
    const float at = source(i);
    const int low = min(static_cast<int>(at), in - 1), high = min(low + 1, in - 1);
    const float t = at - float(low);
    return (low == y ? 1.0f - t : 0.0f) + (high == y ? t : 0.0f);
  }
  /// Those whose source lies less than a sample away, and one more at either end against rounding.
  __device__ Span span(int y) const {
    if (scale == 0.0f) return {0, out};
    const float shift = align_corners ? 0.0f : 0.5f;
    const float first = (float(y) - 1.0f + shift) / scale - shift, last = (float(y) + 1.0f + shift) / scale - shift;
    return {max(0, static_cast<int>(floorf(first)) - 1),
            y == in - 1 ? out : min(out, static_cast<int>(ceilf(last)) + 2)};
  }
};

/// One side of adaptive pooling: output i covers the samples from floor(i in / out) to ceil((i + 1) in / out).
struct PoolSide {
  int in, out;

  __device__ int first(int i) const { return static_cast<int>(int64_t(i) * in / out); }
  __device__ int last(int i) const { return static_cast<int>((int64_t(i + 1) * in + out - 1) / out); }
  __device__ float weight(int i, int y) const {
    const int begin = first(i), end = last(i);
    return begin <= y && y < end ? 1.0f / float(end - begin) : 0.0f;
  }
  __device__ Span span(int y) const {
    return {static_cast<int>(int64_t(y) * out / in), static_cast<int>((int64_t(y + 1) * out + in - 1) / in)};
  }
};

/// The weight of a tap in a mean: both sides'.
template <class Side>
struct Mean {
  Side rows, columns;
  static constexpr bool indexed = false;
};

/// In a maximum: whether the output's index names the sample.
struct Maximum {
  PoolSide rows, columns;
  static constexpr bool indexed = true;
};

template <class T, class Kind>
__global__ void __launch_bounds__(ResampleTuning::threads)
    resample_backward(const ResampleBackward a, const Kind kind, int samples, int lanes) {
  const int lane = threadIdx.x & (lanes - 1);
  const int sample = blockIdx.x * (ResampleTuning::threads / lanes) + threadIdx.x / lanes;
  const bool live = sample < samples;  // all lanes stay for the shuffles
  const int channel = sample % a.channels, place = sample / a.channels;
  const int x = place % a.width, y = place / a.width % a.height, image = place / a.width / a.height;
  const T* grad = static_cast<const T*>(a.grad);
  float sum = 0.0f;
  if (live) {
    const Span rows = kind.rows.span(y), columns = kind.columns.span(x);
    const int wide = columns.end - columns.begin, taps = (rows.end - rows.begin) * wide;
    int row = lane / wide, column = lane % wide;
    const int down = lanes / wide, along = lanes % wide;
    for (int tap = lane; tap < taps; tap += lanes) {
      const int i = rows.begin + row, j = columns.begin + column;
      const int64_t from = ((int64_t(image) * kind.rows.out + i) * kind.columns.out + j) * a.channels + channel;
      if constexpr (Kind::indexed) {
        if (a.index[from] == int64_t(y) * a.width + x) sum += to_float(grad[from]);
      } else {
        const float weight = kind.rows.weight(i, y) * kind.columns.weight(j, x);
        if (weight != 0.0f) sum = fmaf(weight, to_float(grad[from]), sum);
      }
      row += down;
      column += along;
      if (column >= wide) {
        column -= wide;
        ++row;
      }
    }
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(whole_warp, sum, offset);
  if (live && lane == 0) from_float(sum, static_cast<T*>(a.d_x)[sample]);
}

template <class T, class Kind>
cudaError_t launch_resample(const ResampleBackward& a, const Kind& kind, cudaStream_t stream) {
  const int64_t samples = a.images * a.channels * a.height * a.width;
  if (samples == 0) return cudaSuccess;
  const auto taps_of = [](int in, int out) { return 2.0 * out / in + 2.0; };
  const double taps = taps_of(a.height, kind.rows.out) * taps_of(a.width, kind.columns.out);
  int lanes = 1;
  while (lanes < 32 && taps > double(ResampleTuning::taps_of_a_lane) * lanes) lanes *= 2;
  const int64_t blocks = (samples * lanes + ResampleTuning::threads - 1) / ResampleTuning::threads;
  resample_backward<T><<<static_cast<unsigned>(blocks), ResampleTuning::threads, 0, stream>>>(
      a, kind, static_cast<int>(samples), lanes);
  return cudaGetLastError();
}

template <class T>
cudaError_t resample_backward_of(const ResampleBackward& a, cudaStream_t stream) {
  const PoolSide rows{a.height, a.out_height}, columns{a.width, a.out_width};
  switch (a.resample) {
    case Resample::bilinear:
    case Resample::bilinear_corners: {
      const bool corners = a.resample == Resample::bilinear_corners;
      return launch_resample<T>(a,
                                Mean<BilinearSide>{BilinearSide(a.height, a.out_height, corners),
                                                   BilinearSide(a.width, a.out_width, corners)},
                                stream);
    }
    case Resample::average: return launch_resample<T>(a, Mean<PoolSide>{rows, columns}, stream);
    case Resample::maximum: return launch_resample<T>(a, Maximum{rows, columns}, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace detail

inline cudaError_t resample_backward(const ResampleBackward& a, cudaStream_t stream) {
  switch (a.type) {
    case Type::float32: return detail::resample_backward_of<float>(a, stream);
    case Type::bfloat16: return detail::resample_backward_of<__nv_bfloat16>(a, stream);
    case Type::float16: return detail::resample_backward_of<__half>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace moecod::kernel
