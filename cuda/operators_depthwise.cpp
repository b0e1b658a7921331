// The operator torch.ops.moecod.grouped_depthwise_conv2d: images sorted by expert, each channel by its expert's filter and
// bias, then GELU if asked for.
//
// The kernels take float32, bfloat16 and float16 of any number of channels, and filters of up to 7 columns; 3x3 filters that
// keep the size have kernels of their own. The rest goes expert by expert, which reads the offsets back and is counted. Images
// are read channels last; others are copied. What GELU is applied to is not kept but computed anew.
#include <ATen/autocast_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/zeros.h>
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
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using Needed = std::array<bool, 3>;  // d_x, d_weight, d_bias; what was not asked for is empty

void check(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets, IntArrayRef padding,
           IntArrayRef dilation) {
  constexpr const char* name = "moecod::grouped_depthwise_conv2d";
  TORCH_CHECK(weight.dim() == 5 && weight.sym_size(2) == 1, name, ": weight must be [E, C, 1, kh, kw], got ",
              weight.sym_sizes());
  TORCH_CHECK(x.dim() == 4 && x.sym_size(1) == weight.sym_size(1), name, ": x must be [M, ", weight.sym_size(1),
              ", H, W], got ", x.sym_sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), name, ": x and weight must have one type, got ", x.scalar_type(),
              " and ", weight.scalar_type());
  TORCH_CHECK(!bias || (bias->dim() == 2 && bias->sym_size(0) == weight.sym_size(0) &&
                        bias->sym_size(1) == weight.sym_size(1) && bias->scalar_type() == x.scalar_type()),
              name, ": bias must be [E, C] of x's type");
  TORCH_CHECK(padding.size() == 2 && dilation.size() == 2, name, ": padding and dilation must be pairs");
  check_offsets(name, offsets, weight.sym_size(0));
  check_devices(name, "x", x, {{"weight", weight}, {"bias", bias}, {"offsets", offsets}});
}

bool takes(const Tensor& x, const Tensor& weight, IntArrayRef padding, IntArrayRef dilation) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  int64_t out = 1;
  for (const auto& size : conv_sizes(x, weight, padding, dilation)) out *= size.expect_int();
  return kernel_type(x) && x.numel() <= most && out > 0 && out <= most && weight.size(4) <= kernel::depthwise_columns;
}

/// [E, C, 1, kh, kw] as [E, kh, kw, C], contiguous.
Tensor channels_behind(const Tensor& weight) {
  return readable(weight.squeeze(2).permute({0, 2, 3, 1}));
}

Tensor by_torch(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                IntArrayRef padding, IntArrayRef dilation, bool gelu) {
  check(x, weight, bias, offsets, padding, dilation);
  const Tensor y = at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last));
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    y.slice(0, begin, end)
        .copy_(at::conv2d(x.slice(0, begin, end), weight[e], bias ? (*bias)[e] : Tensor(), /*stride=*/1, padding, dilation,
                          /*groups=*/x.size(1)));
  });
  return gelu ? at::gelu(y) : y;
}

/// Whether the kernels of 3x3 filters take what the general ones do.
bool is_3x3(const Tensor& x, const Tensor& weight, IntArrayRef padding, IntArrayRef dilation) {
  const auto all = [](IntArrayRef pair, int64_t value) { return pair[0] == value && pair[1] == value; };
  return all(weight.sizes().slice(3), 3) && all(padding, 1) && all(dilation, 1) &&
         depthwise_3x3_takes(x.size(1), x.size(0), static_cast<int>(x.size(2)), static_cast<int>(x.size(3)));
}

/// A convolution of a kernel's own size and type, all in the format that it reads.
struct Call {
  Tensor x, weight, bias, offsets;  // bias may be undefined
  kernel::ConvShape shape;
  bool transposed = false, gelu = false;
  Tensor grad = {};  // of gelu(h)
};

Call call_of(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets, IntArrayRef padding,
             IntArrayRef dilation, bool gelu) {
  Call c{.x = last_readable(x),
         .weight = channels_behind(weight),
         .bias = bias ? readable(*bias) : Tensor(),
         .offsets = offsets.contiguous(),
         .shape = shape_of(x, weight, padding, dilation),
         .gelu = gelu};
  c.shape.in = c.shape.out;
  return c;
}

/// y = h, gelu(h), or grad gelu'(h).
Tensor convolve(const Call& c, bool by_3x3) {
  const int64_t height = c.transposed ? c.shape.height : c.shape.out_height();
  const int64_t width = c.transposed ? c.shape.width : c.shape.out_width();
  const Tensor y = at::empty({c.x.size(0), c.shape.in, height, width}, c.x.options().memory_format(channels_last));
  const kernel::Groups images = groups(y, c.offsets);
  const void* bias = c.bias.defined() ? c.bias.const_data_ptr() : nullptr;
  if (by_3x3) {
    C10_CUDA_CHECK(depthwise_3x3({.groups = images,
                                  .height = c.shape.height,
                                  .width = c.shape.width,
                                  .channels = c.shape.in,
                                  .type = *kernel_type(c.x),
                                  .transposed = c.transposed,
                                  .gelu = c.gelu,
                                  .x = c.x.const_data_ptr(),
                                  .weight = c.weight.const_data_ptr(),
                                  .bias = bias,
                                  .grad = c.grad.defined() ? c.grad.const_data_ptr() : nullptr,
                                  .y = y.mutable_data_ptr()},
                                 stream()));
    return y;
  }
  C10_CUDA_CHECK(depthwise({.groups = images,
                            .shape = c.shape,
                            .transposed = c.transposed,
                            .type = *kernel_type(c.x),
                            .x = c.x.const_data_ptr(),
                            .weight = c.weight.const_data_ptr(),
                            .bias = bias,
                            .y = y.mutable_data_ptr()},
                           stream()));
  return !c.gelu ? y : c.grad.defined() ? at::gelu_backward(c.grad, y) : at::gelu(y);
}

Tensor by_kernel(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                 IntArrayRef padding, IntArrayRef dilation, bool gelu) {
  check(x, weight, bias, offsets, padding, dilation);
  if (!kernel_takes(takes(x, weight, padding, dilation)))
    return by_torch(x, weight, bias, offsets, padding, dilation, gelu);
  const c10::cuda::CUDAGuard device(x.device());
  return convolve(call_of(x, weight, bias, offsets, padding, dilation, gelu), is_3x3(x, weight, padding, dilation));
}

Tensor shapes(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
              IntArrayRef padding, IntArrayRef dilation, bool) {
  check(x, weight, bias, offsets, padding, dilation);
  return at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last));
}

/// What of a gradient was not asked for is empty.
Gradients asked(const Tensor& d_x, const Tensor& d_weight, const Tensor& d_bias, const Tensor& x) {
  const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, x.options()); };
  return {or_empty(d_x), or_empty(d_weight), or_empty(d_bias)};
}

Gradients backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                            const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation, bool gelu, Needed needed) {
  const Tensor g =
      gelu ? at::gelu_backward(grad, by_torch(x, weight, bias, offsets, padding, dilation, /*gelu=*/false)) : grad;
  const Tensor d_x = needed[0] ? at::empty(x.sizes(), x.options().memory_format(channels_last)) : Tensor();
  const Tensor d_weight = needed[1] ? at::zeros(weight.sizes(), weight.options()) : Tensor();
  const Tensor d_bias = needed[2] ? at::zeros({weight.size(0), weight.size(1)}, x.options()) : Tensor();
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const auto [dx, dw, db] =
        at::convolution_backward(g.slice(0, begin, end), x.slice(0, begin, end), weight[e],
                                 at::OptionalIntArrayRef({weight.size(1)}), /*stride=*/{1, 1}, padding, dilation,
                                 /*transposed=*/false, /*output_padding=*/{0, 0}, /*groups=*/x.size(1), needed);
    if (needed[0]) d_x.slice(0, begin, end).copy_(dx);
    if (needed[1]) d_weight[e].copy_(dw);
    if (needed[2]) d_bias[e].copy_(db);
  });
  return asked(d_x, d_weight, d_bias, x);
}

/// The gradients of filters and biases, [E, taps + 1, C], and into `d_x`, where it is there, by the same kernel that of x.
Tensor weight_gradients(const Call& c, const Tensor& grad, bool by_3x3, const Tensor& d_x) {
  const int64_t taps = c.shape.taps(), channels = c.shape.out;
  const kernel::Groups images = groups(grad, c.offsets);
  const Tensor both = at::empty({c.weight.size(0), taps + 1, channels}, c.x.options());
  const int64_t pieces = by_3x3 ? c.x.size(0) * kernel::depthwise_3x3_strips(c.shape.height)
                                : images.pieces(kernel::column_sums_piece);
  const Tensor partial = at::empty({pieces, taps + 1, channels}, c.x.options().dtype(at::kFloat));
  if (by_3x3)
    C10_CUDA_CHECK(depthwise_3x3_backward({.groups = images,
                                           .height = c.shape.height,
                                           .width = c.shape.width,
                                           .channels = c.shape.in,
                                           .type = *kernel_type(c.x),
                                           .grad = grad.const_data_ptr(),
                                           .x = c.x.const_data_ptr(),
                                           .weight = c.weight.const_data_ptr(),
                                           .partial = partial.mutable_data_ptr<float>(),
                                           .d_x = d_x.defined() ? d_x.mutable_data_ptr() : nullptr,
                                           .d_weight = both.mutable_data_ptr()},
                                          stream()));
  else
    C10_CUDA_CHECK(depthwise_weight({.groups = images,
                                     .shape = c.shape,
                                     .type = *kernel_type(c.x),
                                     .x = c.x.const_data_ptr(),
                                     .grad = grad.const_data_ptr(),
                                     .partial = partial.mutable_data_ptr<float>(),
                                     .d_weight = both.mutable_data_ptr()},
                                    stream()));
  return both;
}

Gradients backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                             const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation, bool gelu, Needed needed) {
  if (!kernel_takes(takes(x, weight, padding, dilation) && grad.scalar_type() == x.scalar_type()))
    return backward_by_torch(grad, x, weight, bias, offsets, padding, dilation, gelu, needed);
  const c10::cuda::CUDAGuard device(x.device());
  Call c = call_of(x, weight, bias, offsets, padding, dilation, gelu);
  c.grad = last_readable(grad);
  const bool by_3x3 = is_3x3(c.x, weight, padding, dilation), of_weights = needed[1] || needed[2];
  const Tensor g = gelu ? convolve(c, by_3x3) : c.grad;
  Tensor d_x, d_weight, d_bias, both;
  if (by_3x3 && of_weights) {
    if (needed[0]) d_x = at::empty(x.sizes(), x.options().memory_format(channels_last));
    both = weight_gradients(c, g, by_3x3, d_x);
  } else {
    if (needed[0])
      d_x = convolve({.x = g, .weight = c.weight, .bias = {}, .offsets = c.offsets, .shape = c.shape, .transposed = true},
                     by_3x3);
    if (of_weights) both = weight_gradients(c, g, by_3x3, {});
  }
  const int64_t taps = c.shape.taps();
  if (needed[1]) d_weight = both.slice(1, 0, taps).transpose(1, 2).reshape(weight.sizes()).contiguous();
  if (needed[2]) d_bias = both.select(1, taps).clone();
  return asked(d_x, d_weight, d_bias, x);
}

Gradients backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const optional<Tensor>&, const Tensor&,
                          IntArrayRef, IntArrayRef, bool, Needed needed) {
  return asked(needed[0] ? at::empty_symint(x.sym_sizes(), x.options().memory_format(channels_last)) : Tensor(),
               needed[1] ? at::empty_symint(weight.sym_sizes(), weight.options()) : Tensor(),
               needed[2] ? at::empty_symint({weight.sym_size(0), weight.sym_size(1)}, weight.options()) : Tensor(), x);
}

struct Backward {
  static constexpr const char* name = "moecod::grouped_depthwise_conv2d_backward";
  using signature = Gradients(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&, const Tensor&,
                              IntArrayRef, IntArrayRef, bool, Needed);
};

struct DepthwiseFunction : Function<DepthwiseFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                        const Tensor& offsets, IntArrayRef padding, IntArrayRef dilation, bool gelu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets, bias.value_or(Tensor())});
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["gelu"] = gelu;
    return call<operators::GroupedDepthwiseConv2d>(x, weight, bias, offsets, padding, dilation, gelu);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto padding = ctx->saved_data["padding"].toIntVector(), dilation = ctx->saved_data["dilation"].toIntVector();
    const optional<Tensor> bias = if_defined(saved[3]);
    // needs_input_grad counts the tensors that were given.
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1), bias && ctx->needs_input_grad(2)};
    const auto [d_x, d_weight, d_bias] =
        call<Backward>(grads[0], saved[0], saved[1], bias, saved[2], IntArrayRef(padding), IntArrayRef(dilation),
                       ctx->saved_data["gelu"].toBool(), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), needed[2] ? d_bias : Tensor(), {}, {}, {}, {}};
  }
};

Tensor with_autograd(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                     IntArrayRef padding, IntArrayRef dilation, bool gelu) {
  return DepthwiseFunction::apply(x, weight, bias, offsets, padding, dilation, gelu);
}

Tensor with_autocast(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                     IntArrayRef padding, IntArrayRef dilation, bool gelu) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto cast = [type = at::autocast::get_autocast_dtype(at::kCUDA)](const Tensor& t) {
    return at::autocast::cached_cast(type, t, at::kCUDA);
  };
  return call<operators::GroupedDepthwiseConv2d>(cast(x), cast(weight), bias ? optional(cast(*bias)) : bias, offsets,
                                                 padding, dilation, gelu);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def(
      "grouped_depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, int[2] padding, int[2] dilation, "
      "bool gelu) -> Tensor");
  m.def(
      "grouped_depthwise_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor offsets, "
      "int[2] padding, int[2] dilation, bool gelu, bool[3] needed) -> (Tensor d_x, Tensor d_weight, Tensor d_bias)");
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
