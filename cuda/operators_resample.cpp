// Resized maps, torch.ops.moecod.resize, and the backward passes of resized and pooled ones,
// torch.ops.moecod.{resize,average_pool,max_pool}_backward: schemas, CUDA kernels, shapes, LibTorch's operations elsewhere.
// They are parts of the derivatives that layers/resize.hpp and layers/pool.hpp define.
//
// The kernels take float32, bfloat16 and float16 in either memory format. What they do not take runs LibTorch's operations,
// as on the CPU, and is counted. Weights are uploaded once for each pair of sizes; nothing else synchronises.
#include <ATen/ops/empty.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"
#include "moecod/layers/pool.hpp"
#include "moecod/layers/resize.hpp"

namespace moecod::cuda {
namespace {

using at::Tensor;
using c10::SymInt;

void check_maps(const char* name, const Tensor& maps, const SymInt& height, const SymInt& width) {
  TORCH_CHECK(maps.dim() == 4, name, ": maps must be [B, C, height, width], got ", maps.sym_sizes());
  TORCH_CHECK(maps.sym_size(2) > 0 && maps.sym_size(3) > 0, name, ": maps must have pixels, got ", maps.sym_sizes());
  TORCH_CHECK(height > 0 && width > 0, name, ": height and width must be positive, got ", height, " and ", width);
}

void check_index(const Tensor& grad, const Tensor& index) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.sym_sizes() == grad.sym_sizes(),
              "moecod::max_pool_backward: index must be int64 of grad's shape ", grad.sym_sizes(), ", got ",
              index.scalar_type(), " ", index.sym_sizes());
}

bool takes(const Tensor& grad, int64_t height, int64_t width) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t maps = grad.size(0) * grad.size(1);
  return kernel_type(grad) && grad.numel() <= most && maps * height * width <= most && grad.size(1) * width < 1 << 19;
}

/// x, or with `index` the gradient of a maximum, resampled to [.., height, width] by the bands [1 + taps, height] and
/// [1 + taps, width] of its sides.
Tensor resampled(const Tensor& x, const Tensor& index, int64_t height, int64_t width, const Tensor& rows,
                 const Tensor& columns) {
  const c10::cuda::CUDAGuard device(x.device());
  const auto format = x.suggest_memory_format();
  const bool last = format == at::MemoryFormat::ChannelsLast;
  const Tensor in = x.contiguous(format), at = index.defined() ? index.contiguous(format) : index;
  const Tensor out = at::empty({x.size(0), x.size(1), height, width}, x.options(), format);
  C10_CUDA_CHECK(resample({.x = in.const_data_ptr(),
                           .index = at.defined() ? at.const_data_ptr<int64_t>() : nullptr,
                           .rows = rows.const_data_ptr<float>(),
                           .columns = columns.const_data_ptr<float>(),
                           .images = last ? x.size(0) : x.size(0) * x.size(1),
                           .channels = last ? static_cast<int>(x.size(1)) : 1,
                           .height = static_cast<int>(x.size(2)),
                           .width = static_cast<int>(x.size(3)),
                           .out_height = static_cast<int>(height),
                           .out_width = static_cast<int>(width),
                           .row_taps = static_cast<int>(rows.size(0)) - 1,
                           .column_taps = static_cast<int>(columns.size(0)) - 1,
                           .type = *kernel_type(x),
                           .y = out.mutable_data_ptr()},
                          stream()));
  return out;
}

/// The gradient of maps of that height and width, by the bands that `make` gives of their sides.
Tensor resampled_back(const Tensor& grad, const Tensor& index, int64_t height, int64_t width,
                      layers::detail::MakeTensor make, bool variant = false) {
  const auto band = [&](int64_t before, int64_t after) {
    return layers::detail::size_tensor(make, before, after, variant, grad.options().dtype(at::kFloat));
  };
  return resampled(grad, index, height, width, band(height, grad.size(2)), band(width, grad.size(3)));
}

// resize, which has its own derivative (layers/resize.hpp)

Tensor resized_by_torch(const Tensor& x, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize", x, height, width);
  return at::upsample_bilinear2d(x, {height, width}, align_corners);
}

Tensor resized_by_kernel(const Tensor& x, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize", x, height, width);
  if (!kernel_takes(takes(x, height, width))) return resized_by_torch(x, height, width, align_corners);
  const auto band = [&](int64_t before, int64_t after) {
    return layers::detail::size_tensor(layers::detail::bilinear_parts, before, after, align_corners,
                                       x.options().dtype(at::kFloat));
  };
  return resampled(x, {}, height, width, band(x.size(2), height), band(x.size(3), width));
}

Tensor resize_by_torch(const Tensor& grad, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize_backward", grad, height, width);
  return layers::detail::resize_backward(grad, height, width, align_corners);
}

Tensor resize_by_kernel(const Tensor& grad, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize_backward", grad, height, width);
  if (!kernel_takes(takes(grad, height, width))) return resize_by_torch(grad, height, width, align_corners);
  return resampled_back(grad, {}, height, width, layers::detail::bilinear_band, align_corners);
}

Tensor average_pool_by_torch(const Tensor& grad, int64_t height, int64_t width) {
  check_maps("moecod::average_pool_backward", grad, height, width);
  return layers::detail::average_pool_backward(grad, height, width);
}

Tensor average_pool_by_kernel(const Tensor& grad, int64_t height, int64_t width) {
  check_maps("moecod::average_pool_backward", grad, height, width);
  if (!kernel_takes(takes(grad, height, width))) return average_pool_by_torch(grad, height, width);
  return resampled_back(grad, {}, height, width, layers::detail::average_band);
}

Tensor max_pool_by_torch(const Tensor& grad, const Tensor& index, int64_t height, int64_t width) {
  check_maps("moecod::max_pool_backward", grad, height, width);
  check_index(grad, index);
  return layers::detail::max_pool_backward(grad, index, height, width);
}

Tensor max_pool_by_kernel(const Tensor& grad, const Tensor& index, int64_t height, int64_t width) {
  check_maps("moecod::max_pool_backward", grad, height, width);
  check_index(grad, index);
  if (!kernel_takes(takes(grad, height, width))) return max_pool_by_torch(grad, index, height, width);
  return resampled_back(grad, index, height, width, layers::detail::window_band);
}

Tensor maps_like(const Tensor& grad, const SymInt& height, const SymInt& width) {
  return at::empty_symint({grad.sym_size(0), grad.sym_size(1), height, width}, grad.options(),
                          grad.suggest_memory_format());
}

Tensor resized_shapes(const Tensor& x, SymInt height, SymInt width, bool) {
  check_maps("moecod::resize", x, height, width);
  return maps_like(x, height, width);
}

Tensor resize_shapes(const Tensor& grad, SymInt height, SymInt width, bool) {
  check_maps("moecod::resize_backward", grad, height, width);
  return maps_like(grad, height, width);
}

Tensor average_pool_shapes(const Tensor& grad, SymInt height, SymInt width) {
  check_maps("moecod::average_pool_backward", grad, height, width);
  return maps_like(grad, height, width);
}

Tensor max_pool_shapes(const Tensor& grad, const Tensor& index, SymInt height, SymInt width) {
  check_maps("moecod::max_pool_backward", grad, height, width);
  check_index(grad, index);
  return maps_like(grad, height, width);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def("resize(Tensor x, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def("resize_backward(Tensor grad, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def("average_pool_backward(Tensor grad, SymInt height, SymInt width) -> Tensor");
  m.def("max_pool_backward(Tensor grad, Tensor index, SymInt height, SymInt width) -> Tensor");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("resize", &resized_by_kernel);
  m.impl("resize_backward", &resize_by_kernel);
  m.impl("average_pool_backward", &average_pool_by_kernel);
  m.impl("max_pool_backward", &max_pool_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("resize", &resized_by_torch);
  m.impl("resize_backward", &resize_by_torch);
  m.impl("average_pool_backward", &average_pool_by_torch);
  m.impl("max_pool_backward", &max_pool_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("resize", &resized_shapes);
  m.impl("resize_backward", &resize_shapes);
  m.impl("average_pool_backward", &average_pool_shapes);
  m.impl("max_pool_backward", &max_pool_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("resize", torch::autograd::autogradNotImplementedFallback());
  m.impl("resize_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("average_pool_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("max_pool_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moecod::cuda
