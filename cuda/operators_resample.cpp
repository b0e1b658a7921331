// The backward passes of resized and pooled maps, torch.ops.moecod.{resize,average_pool,max_pool}_backward: schemas, CUDA
// kernels, shapes, LibTorch's operations elsewhere.
//
// The kernels take float32, bfloat16 and float16 in either memory format. What they do not take runs LibTorch's operations,
// as on the CPU, and is counted. Weights are uploaded once for each pair of sizes; nothing else synchronises.
#include <ATen/ops/empty.h>
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

void check_maps(const char* name, const Tensor& grad, const SymInt& height, const SymInt& width) {
  TORCH_CHECK(grad.dim() == 4, name, ": grad must be [B, C, height, width], got ", grad.sym_sizes());
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
  return kernel_type(grad) && grad.numel() <= most && maps * height * width <= most - 256;
}

/// By the bands that `make` gives of heights and widths.
Tensor resampled(const Tensor& grad, const Tensor& index, int64_t height, int64_t width, layers::detail::MakeTensor make,
                 bool variant = false) {
  const c10::cuda::CUDAGuard device(grad.device());
  const auto format = grad.suggest_memory_format();
  const bool last = format == at::MemoryFormat::ChannelsLast;
  const Tensor g = grad.contiguous(format), at = index.defined() ? index.contiguous(format) : index;
  const auto floats = g.options().dtype(at::kFloat);
  const Tensor rows = layers::detail::size_tensor(make, height, g.size(2), variant, floats);
  const Tensor columns = layers::detail::size_tensor(make, width, g.size(3), variant, floats);
  const Tensor out = at::empty({g.size(0), g.size(1), height, width}, g.options(), format);
  C10_CUDA_CHECK(resample_backward({.grad = g.const_data_ptr(),
                                    .index = at.defined() ? at.const_data_ptr<int64_t>() : nullptr,
                                    .rows = rows.const_data_ptr<float>(),
                                    .columns = columns.const_data_ptr<float>(),
                                    .images = last ? g.size(0) : g.size(0) * g.size(1),
                                    .channels = last ? static_cast<int>(g.size(1)) : 1,
                                    .height = static_cast<int>(height),
                                    .width = static_cast<int>(width),
                                    .out_height = static_cast<int>(g.size(2)),
                                    .out_width = static_cast<int>(g.size(3)),
                                    .row_taps = static_cast<int>(rows.size(1)) - 1,
                                    .column_taps = static_cast<int>(columns.size(1)) - 1,
                                    .type = *kernel_type(g),
                                    .d_x = out.mutable_data_ptr()},
                                   stream()));
  return out;
}

Tensor resize_by_torch(const Tensor& grad, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize_backward", grad, height, width);
  return layers::detail::resize_backward(grad, height, width, align_corners);
}

Tensor resize_by_kernel(const Tensor& grad, int64_t height, int64_t width, bool align_corners) {
  check_maps("moecod::resize_backward", grad, height, width);
  if (!kernel_takes(takes(grad, height, width))) return resize_by_torch(grad, height, width, align_corners);
  return resampled(grad, {}, height, width, layers::detail::bilinear_band, align_corners);
}

Tensor average_pool_by_torch(const Tensor& grad, int64_t height, int64_t width) {
  check_maps("moecod::average_pool_backward", grad, height, width);
  return layers::detail::average_pool_backward(grad, height, width);
}

Tensor average_pool_by_kernel(const Tensor& grad, int64_t height, int64_t width) {
  check_maps("moecod::average_pool_backward", grad, height, width);
  if (!kernel_takes(takes(grad, height, width))) return average_pool_by_torch(grad, height, width);
  return resampled(grad, {}, height, width, layers::detail::average_band);
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
  return resampled(grad, index, height, width, layers::detail::window_band);
}

Tensor maps_like(const Tensor& grad, const SymInt& height, const SymInt& width) {
  return at::empty_symint({grad.sym_size(0), grad.sym_size(1), height, width}, grad.options(),
                          grad.suggest_memory_format());
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
  m.def("resize_backward(Tensor grad, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def("average_pool_backward(Tensor grad, SymInt height, SymInt width) -> Tensor");
  m.def("max_pool_backward(Tensor grad, Tensor index, SymInt height, SymInt width) -> Tensor");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("resize_backward", &resize_by_kernel);
  m.impl("average_pool_backward", &average_pool_by_kernel);
  m.impl("max_pool_backward", &max_pool_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("resize_backward", &resize_by_torch);
  m.impl("average_pool_backward", &average_pool_by_torch);
  m.impl("max_pool_backward", &max_pool_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("resize_backward", &resize_shapes);
  m.impl("average_pool_backward", &average_pool_shapes);
  m.impl("max_pool_backward", &max_pool_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("resize_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("average_pool_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("max_pool_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moecod::cuda
