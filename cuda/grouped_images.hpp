#pragma once
#include <ATen/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/cuda/CUDAException.h>

#include <cstdint>

#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"
#include "moecod/kernel/arguments.hpp"

/// What the operators on images sorted by expert share.
namespace moecod::cuda {

constexpr auto channels_last = at::MemoryFormat::ChannelsLast;

/// The sizes of a convolution of stride 1.
inline c10::SymDimVector conv_sizes(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  c10::SymDimVector sizes{x.sym_size(0), weight.sym_size(1)};
  for (int i = 0; i < 2; ++i)
    sizes.push_back(x.sym_size(2 + i) + 2 * padding[i] - dilation[i] * (weight.sym_size(3 + i) - 1));
  return sizes;
}

inline kernel::ConvShape conv_shape(int64_t in, int64_t out, int64_t height, int64_t width, at::IntArrayRef kernel,
                                    at::IntArrayRef padding, at::IntArrayRef dilation) {
  kernel::ConvShape s;
  s.height = static_cast<int>(height);
  s.width = static_cast<int>(width);
  s.in = static_cast<int>(in);
  s.out = static_cast<int>(out);
  for (std::size_t i = 0; i < 2; ++i) {
    s.kernel[i] = static_cast<int>(kernel[i]);
    s.padding[i] = static_cast<int>(padding[i]);
    s.dilation[i] = static_cast<int>(dilation[i]);
  }
  return s;
}

/// That of images x and weights [E, out, in, kh, kw].
inline kernel::ConvShape shape_of(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef padding,
                                  at::IntArrayRef dilation) {
  return conv_shape(weight.size(2), weight.size(1), x.size(2), x.size(3), weight.sizes().slice(3), padding, dilation);
}

inline kernel::Groups groups(const at::Tensor& images, const at::Tensor& offsets) {
  return groups_of(offsets, images.size(0), images.size(2) * images.size(3));
}

/// Launches the gradient of a convolution's weights, with room for its sums.
inline void run_conv_weight(kernel::ConvWeight arguments, const at::TensorOptions& options) {
  int64_t size = 0;
  C10_CUDA_CHECK(conv_weight_partial(arguments, &size));
  const at::Tensor partial = at::empty({size}, options.dtype(at::kFloat));
  arguments.partial = partial.mutable_data_ptr<float>();
  C10_CUDA_CHECK(conv_weight(arguments, stream()));
}

/// Images as the kernels read them.
inline at::Tensor last_readable(const at::Tensor& images) { return readable(images, channels_last); }

/// Weights [E, out, in, kh, kw] as [E, out, kh, kw, in], contiguous.
inline at::Tensor taps_first(const at::Tensor& weight) { return readable(weight.permute({0, 1, 3, 4, 2})); }

}  // namespace moecod::cuda
