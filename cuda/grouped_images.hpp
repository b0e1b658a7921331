#pragma once
#include <ATen/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "cuda/operators.hpp"
#include "moecod/kernel/arguments.hpp"

/// What the operators on images sorted by expert share.
namespace moecod::cuda {

constexpr auto channels_last = at::MemoryFormat::ChannelsLast;

inline void check_offsets(const char* name, const at::Tensor& offsets, const c10::SymInt& experts) {
  TORCH_CHECK(offsets.dim() == 1 && offsets.sym_size(0) == experts + 1 && offsets.scalar_type() == at::kInt, name,
              ": offsets must be [E + 1] int32, got ", offsets.sym_sizes(), " ", offsets.scalar_type());
}

/// Calls f(e, first image, last image) for the experts that have some of the images.
/// Synchronises: for images on CUDA of more than one expert.
template <class F>
void each_expert(const at::Tensor& images, const at::Tensor& offsets, F&& f) {
  if (offsets.numel() == 2) {
    if (images.size(0) > 0) f(0, 0, images.size(0));
    return;
  }
  const at::Tensor host = offsets.cpu();
  const int32_t* bounds = host.const_data_ptr<int32_t>();
  for (int64_t e = 0; e + 1 < host.numel(); ++e)
    if (bounds[e] < bounds[e + 1]) f(e, bounds[e], bounds[e + 1]);
}

/// The sizes of a convolution of stride 1.
inline c10::SymDimVector conv_sizes(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  c10::SymDimVector sizes{x.sym_size(0), weight.sym_size(1)};
  for (int i = 0; i < 2; ++i)
    sizes.push_back(x.sym_size(2 + i) + 2 * padding[i] - dilation[i] * (weight.sym_size(3 + i) - 1));
  return sizes;
}

inline kernel::ConvShape shape_of(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef padding,
                                  at::IntArrayRef dilation) {
  kernel::ConvShape s;
  s.height = static_cast<int>(x.size(2));
  s.width = static_cast<int>(x.size(3));
  s.in = static_cast<int>(weight.size(2));
  s.out = static_cast<int>(weight.size(1));
  for (int i = 0; i < 2; ++i) {
    s.kernel[i] = static_cast<int>(weight.size(3 + i));
    s.padding[i] = static_cast<int>(padding[i]);
    s.dilation[i] = static_cast<int>(dilation[i]);
  }
  return s;
}

inline kernel::Groups groups(const at::Tensor& images, const at::Tensor& offsets) {
  return {.offsets = offsets.const_data_ptr<int32_t>(),
          .experts = static_cast<int>(offsets.size(0) - 1),
          .rows = images.size(0),
          .each = images.size(2) * images.size(3)};
}

/// A contiguous tensor where kernels can read it in vectors of 16 bytes.
inline at::Tensor readable(const at::Tensor& t) { return aligned(t) ? t : t.clone(); }

/// Weights [E, out, in, kh, kw] as [E, out, kh, kw, in], contiguous.
inline at::Tensor taps_first(const at::Tensor& weight) { return readable(weight.permute({0, 1, 3, 4, 2}).contiguous()); }

/// Errors: c10::Error if a tensor that is there lies elsewhere than x.
inline void check_devices(const char* name, const at::Tensor& x, std::initializer_list<std::optional<at::Tensor>> others) {
  for (const auto& other : others)
    TORCH_CHECK(!other || !other->defined() || other->device() == x.device(), name, ": all tensors must be where x is, on ",
                x.device(), ", got one on ", other->device());
}

}  // namespace moecod::cuda
