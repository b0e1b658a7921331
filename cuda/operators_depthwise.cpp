// The operator torch.ops.moecod.grouped_depthwise_conv2d: images sorted by expert, each channel by its expert's filter.
//
// The kernels take float32, bfloat16 and float16 of any number of channels, and filters of up to 7 columns; the rest goes
// expert by expert, which reads the offsets back and is counted. Images are read channels last; others are copied.
#include <ATen/autocast_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <limits>

#include "cuda/grouped_images.hpp"
#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"

namespace moecod::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Pair = std::tuple<Tensor, Tensor>;
using Needed = std::array<bool, 2>;  // d_x, d_weight; what was not asked for is empty

void check(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation) {
  constexpr const char* name = "moecod::grouped_depthwise_conv2d";
  TORCH_CHECK(weight.dim() == 5 && weight.sym_size(2) == 1, name, ": weight must be [E, C, 1, kh, kw], got ",
              weight.sym_sizes());
  TORCH_CHECK(x.dim() == 4 && x.sym_size(1) == weight.sym_size(1), name, ": x must be [M, ", weight.sym_size(1),
              ", H, W], got ", x.sym_sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), name, ": x and weight must have one type, got ", x.scalar_type(),
              " and ", weight.scalar_type());
  TORCH_CHECK(padding.size() == 2 && dilation.size() == 2, name, ": padding and dilation must be pairs");
  check_offsets(name, offsets, weight.sym_size(0));
}

bool takes(const Tensor& x, const Tensor& weight, IntArrayRef padding, IntArrayRef dilation) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  int64_t out = 1;
  for (const auto& size : conv_sizes(x, weight, padding, dilation)) out *= size.expect_int();
  return kernel_type(x) && x.numel() <= most && out > 0 && out <= most && weight.size(4) <= kernel::depthwise_columns;
}

/// [E, C, 1, kh, kw] as [E, kh, kw, C], contiguous; and back.
Tensor channels_behind(const Tensor& weight) { return weight.squeeze(2).permute({0, 2, 3, 1}).contiguous(); }
Tensor channels_before(const Tensor& weight) { return weight.permute({0, 3, 1, 2}).unsqueeze(2); }

Tensor by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation) {
  check(x, weight, offsets, padding, dilation);
  const Tensor y = at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last));
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    y.slice(0, begin, end)
        .copy_(at::conv2d(x.slice(0, begin, end), weight[e], {}, /*stride=*/1, padding, dilation, /*groups=*/x.size(1)));
  });
  return y;
}

Tensor by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                 IntArrayRef dilation) {
  check(x, weight, offsets, padding, dilation);
  if (!kernel_takes(takes(x, weight, padding, dilation))) return by_torch(x, weight, offsets, padding, dilation);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor in = x.contiguous(channels_last), w = channels_behind(weight), at = offsets.contiguous();
  kernel::ConvShape shape = shape_of(x, weight, padding, dilation);
  shape.in = shape.out;
  const Tensor y = at::empty({x.size(0), shape.out, shape.out_height(), shape.out_width()},
                             x.options().memory_format(channels_last));
  C10_CUDA_CHECK(depthwise({.groups = groups(y, at),
                            .shape = shape,
                            .type = *kernel_type(x),
                            .x = in.const_data_ptr(),
                            .weight = w.const_data_ptr(),
                            .y = y.mutable_data_ptr()},
                           stream()));
  return y;
}

Tensor shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation) {
  check(x, weight, offsets, padding, dilation);
  return at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last));
}

Pair backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                       IntArrayRef padding, IntArrayRef dilation, Needed needed) {
  const Tensor d_x = needed[0] ? at::empty_like(x) : at::empty({0}, x.options());
  const Tensor d_weight = needed[1] ? at::zeros_like(weight) : at::empty({0}, x.options());
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const auto [dx, dw, db] =
        at::convolution_backward(grad.slice(0, begin, end), x.slice(0, begin, end), weight[e], {}, /*stride=*/{1, 1},
                                 padding, dilation, /*transposed=*/false, /*output_padding=*/{0, 0},
                                 /*groups=*/x.size(1), {needed[0], needed[1], false});
    if (needed[0]) d_x.slice(0, begin, end).copy_(dx);
    if (needed[1]) d_weight[e].copy_(dw);
  });
  return {d_x, d_weight};
}

Pair backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                        IntArrayRef padding, IntArrayRef dilation, Needed needed) {
  if (!kernel_takes(takes(x, weight, padding, dilation) && grad.scalar_type() == x.scalar_type()))
    return backward_by_torch(grad, x, weight, offsets, padding, dilation, needed);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor g = grad.contiguous(channels_last), in = x.contiguous(channels_last), at = offsets.contiguous();
  kernel::ConvShape shape = shape_of(x, weight, padding, dilation);
  shape.in = shape.out;
  const kernel::Groups images = groups(g, at);
  Tensor d_x = at::empty({0}, x.options()), d_weight = at::empty({0}, x.options());
  if (needed[0]) {
    const Tensor w = channels_behind(weight);
    d_x = at::empty(x.sizes(), x.options().memory_format(channels_last));
    C10_CUDA_CHECK(depthwise({.groups = images,
                              .shape = shape,
                              .transposed = true,
                              .type = *kernel_type(x),
                              .x = g.const_data_ptr(),
                              .weight = w.const_data_ptr(),
                              .y = d_x.mutable_data_ptr()},
                             stream()));
  }
  if (needed[1]) {
    d_weight = at::empty({weight.size(0), weight.size(3), weight.size(4), weight.size(1)}, x.options());
    const Tensor partial = at::empty({images.pieces(kernel::column_sums_piece), shape.taps(), shape.out},
                                     x.options().dtype(at::kFloat));
    C10_CUDA_CHECK(depthwise_weight({.groups = images,
                                     .shape = shape,
                                     .type = *kernel_type(x),
                                     .x = in.const_data_ptr(),
                                     .grad = g.const_data_ptr(),
                                     .partial = partial.mutable_data_ptr<float>(),
                                     .d_weight = d_weight.mutable_data_ptr()},
                                    stream()));
    d_weight = channels_before(d_weight);
  }
  return {d_x, d_weight};
}

Pair backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor&, IntArrayRef, IntArrayRef,
                     Needed needed) {
  return {needed[0] ? at::empty_like(x) : at::empty({0}, x.options()),
          needed[1] ? at::empty_like(weight) : at::empty({0}, weight.options())};
}

struct Backward {
  static constexpr const char* name = "moecod::grouped_depthwise_conv2d_backward";
  using signature = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, Needed);
};

struct DepthwiseFunction : Function<DepthwiseFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                        IntArrayRef padding, IntArrayRef dilation) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets});
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    return call<operators::GroupedDepthwiseConv2d>(x, weight, offsets, padding, dilation);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto padding = ctx->saved_data["padding"].toIntVector(), dilation = ctx->saved_data["dilation"].toIntVector();
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [d_x, d_weight] = call<Backward>(grads[0], saved[0], saved[1], saved[2], IntArrayRef(padding),
                                                IntArrayRef(dilation), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), {}, {}, {}};
  }
};

Tensor with_autograd(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                     IntArrayRef dilation) {
  return DepthwiseFunction::apply(x, weight, offsets, padding, dilation);
}

Tensor with_autocast(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                     IntArrayRef dilation) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<operators::GroupedDepthwiseConv2d>(at::autocast::cached_cast(type, x, at::kCUDA),
                                                 at::autocast::cached_cast(type, weight, at::kCUDA), offsets, padding,
                                                 dilation);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def(
      "grouped_depthwise_conv2d(Tensor x, Tensor weight, Tensor offsets, int[2] padding, int[2] dilation) -> Tensor");
  m.def(
      "grouped_depthwise_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, int[2] padding, "
      "int[2] dilation, bool[2] needed) -> (Tensor d_x, Tensor d_weight)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_depthwise_conv2d", &by_kernel);
  m.impl("grouped_depthwise_conv2d_backward", &backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_depthwise_conv2d", &by_torch);
  m.impl("grouped_depthwise_conv2d_backward", &backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_depthwise_conv2d", &shapes);
  m.impl("grouped_depthwise_conv2d_backward", &backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_depthwise_conv2d", &with_autograd);
  m.impl("grouped_depthwise_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) { m.impl("grouped_depthwise_conv2d", &with_autocast); }

}  // namespace moecod::cuda
