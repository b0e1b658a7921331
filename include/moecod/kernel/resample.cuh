#pragma once
#include "moecod/kernel/band.hpp"
#include "moecod/kernel/columns.cuh"

/// Backward passes of resampled maps: each sample of the input fetches what it gave to the outputs around it and adds in
/// a fixed order, where LibTorch's kernels let the outputs add to the inputs with atomics.
///
///     d_x[y, x] = sum over i, j of weight(i, y) weight(j, x) grad[i, j]
/// over the rows i and columns j that sample (y, x) had a part in (band.hpp). The part in an average or a bilinear mean is a
/// product of two weights; in a maximum it is 1 where the output's index names the sample. A sample of many outputs is
/// shared by several lanes. Bytes: grad in once (overlapping windows meet in the caches), d_x out.
namespace moecod::kernel {

namespace detail {

struct ResampleTuning {
  static constexpr int threads = 256;
  static constexpr int taps_of_a_lane = 36;  // above it, more lanes share a sample
};

template <class T, bool Indexed>
__global__ void __launch_bounds__(ResampleTuning::threads)
    resample_backward(const ResampleBackward a, int samples, int lanes) {
  const int lane = threadIdx.x & (lanes - 1);
  const int sample = blockIdx.x * (ResampleTuning::threads / lanes) + threadIdx.x / lanes;
  const bool live = sample < samples;  // all lanes stay for the shuffles
  float sum = 0.0f;
  if (live) {
    const int channel = sample % a.channels, place = sample / a.channels;
    const int x = place % a.width, y = place / a.width % a.height, image = place / a.width / a.height;
    const T* grad = static_cast<const T*>(a.grad);
    const int64_t map = int64_t(image) * a.out_height;
    const auto fetch = [&](int i, int j) {
      const int64_t from = ((map + i) * a.out_width + j) * a.channels + channel;
      if constexpr (Indexed)
        if (a.index[from] != int64_t(y) * a.width + x) return 0.0f;
      return to_float(grad[from]);
    };
    sum = share_of_sum({a.rows + int64_t(y) * (1 + a.row_taps), a.row_taps},
                       {a.columns + int64_t(x) * (1 + a.column_taps), a.column_taps}, lane, lanes, fetch);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(whole_warp, sum, offset);
  if (live && lane == 0) from_float(sum, static_cast<T*>(a.d_x)[sample]);
}

}  // namespace detail

/// One launch.
inline cudaError_t resample_backward(const ResampleBackward& a, cudaStream_t stream) {
  const int64_t samples = a.images * a.channels * a.height * a.width;
  if (samples == 0) return cudaSuccess;
  int lanes = 1;
  while (lanes < 32 && a.row_taps * a.column_taps > detail::ResampleTuning::taps_of_a_lane * lanes) lanes *= 2;
  const int64_t blocks = (samples * lanes + detail::ResampleTuning::threads - 1) / detail::ResampleTuning::threads;
  return detail::with_type(a.type, [&]<class T>(T) {
    const auto launch = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(blocks), detail::ResampleTuning::threads, 0, stream>>>(
          a, static_cast<int>(samples), lanes);
      return cudaGetLastError();
    };
    return a.index ? launch(detail::resample_backward<T, true>) : launch(detail::resample_backward<T, false>);
  });
}

}  // namespace moecod::kernel
