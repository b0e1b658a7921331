// The operators torch.ops.moecod.grouped_conv2d and grouped_batch_norm: images sorted by expert, each by its expert's
// parameters.
//
// The kernels take bfloat16, channels that are multiples of 8, and compute capability 9.0; the rest goes expert by
// expert, which reads the offsets back and is counted. Images and weights are read channels last; others are copied.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
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

// ------------------------------------------------------------------------------------------------------- convolution

using Pair = std::tuple<Tensor, Tensor>;
using Needed = std::array<bool, 2>;  // d_x, d_weight; what was not asked for is empty

void check_conv(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                IntArrayRef dilation) {
  TORCH_CHECK(weight.dim() == 5, "moecod::grouped_conv2d: weight must be [E, out, in, kh, kw], got ",
              weight.sym_sizes());
  TORCH_CHECK(x.dim() == 4 && x.sym_size(1) == weight.sym_size(2), "moecod::grouped_conv2d: x must be [M, ",
              weight.sym_size(2), ", H, W], got ", x.sym_sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "moecod::grouped_conv2d: x and weight must have one type, got ",
              x.scalar_type(), " and ", weight.scalar_type());
  TORCH_CHECK(padding.size() == 2 && dilation.size() == 2,
              "moecod::grouped_conv2d: padding and dilation must be pairs");
  check_offsets("moecod::grouped_conv2d", offsets, weight.sym_size(0));
  check_devices("moecod::grouped_conv2d", "x", x, {{"weight", weight}, {"offsets", offsets}});
}

Tensor no_moments(const Tensor& x) { return at::empty({0}, x.options().dtype(at::kFloat)); }

Pair conv_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                   IntArrayRef dilation, bool) {
  check_conv(x, weight, offsets, padding, dilation);
  const Tensor y = at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last));
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    y.slice(0, begin, end).copy_(at::conv2d(x.slice(0, begin, end), weight[e], {}, /*stride=*/1, padding, dilation));
  });
  return {y, no_moments(x)};
}

Pair conv_backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                            IntArrayRef padding, IntArrayRef dilation, Needed needed) {
  const Tensor d_x = needed[0] ? at::empty_like(x) : at::empty({0}, x.options());
  const Tensor d_weight = needed[1] ? at::zeros_like(weight) : at::empty({0}, x.options());
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const auto [dx, dw, db] =
        at::convolution_backward(grad.slice(0, begin, end), x.slice(0, begin, end), weight[e], {}, /*stride=*/{1, 1},
                                 padding, dilation, /*transposed=*/false, /*output_padding=*/{0, 0}, /*groups=*/1,
                                 {needed[0], needed[1], false});
    if (needed[0]) d_x.slice(0, begin, end).copy_(dx);
    if (needed[1]) d_weight[e].copy_(dw);
  });
  return {d_x, d_weight};
}

bool takes(const Tensor& x, const Tensor& weight, const kernel::ConvShape& shape) {
  const int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t positions = std::max(int64_t(shape.out_height()) * shape.out_width(), int64_t(shape.height) * shape.width);
  return x.scalar_type() == at::kBFloat16 && x.numel() > 0 && weight.size(0) <= kernel::max_experts &&
         x.size(0) * positions < most && conv_takes(shape);
}

bool conv2d_takes(int64_t in, int64_t out, int64_t height, int64_t width, IntArrayRef kernel, IntArrayRef padding,
                  IntArrayRef dilation) {
  return conv_takes(conv_shape(in, out, height, width, kernel, padding, dilation));
}

Pair conv_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                    IntArrayRef dilation, bool moments) {
  check_conv(x, weight, offsets, padding, dilation);
  const c10::cuda::CUDAGuard device(x.device());
  const kernel::ConvShape shape = shape_of(x, weight, padding, dilation);
  if (!kernel_takes(takes(x, weight, shape))) return conv_by_torch(x, weight, offsets, padding, dilation, moments);
  const Tensor in = last_readable(x), w = taps_first(weight), at = offsets.contiguous();
  const Tensor y = at::empty({x.size(0), shape.out, shape.out_height(), shape.out_width()},
                             x.options().memory_format(channels_last));
  const kernel::Groups images = groups(y, at);
  const int64_t pieces = moments ? images.pieces(conv_piece(images, shape.out)) : 0;
  const Tensor taken = moments ? at::empty({pieces, 2, shape.out}, x.options().dtype(at::kFloat)) : no_moments(x);
  C10_CUDA_CHECK(conv({.groups = images,
                       .shape = shape,
                       .x = in.const_data_ptr(),
                       .weight = w.const_data_ptr(),
                       .y = y.mutable_data_ptr(),
                       .moments = moments ? taken.mutable_data_ptr<float>() : nullptr},
                      stream()));
  return {y, taken};
}

Pair conv_backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                             IntArrayRef padding, IntArrayRef dilation, Needed needed) {
  const c10::cuda::CUDAGuard device(x.device());
  const kernel::ConvShape shape = shape_of(x, weight, padding, dilation);
  if (!kernel_takes(takes(x, weight, shape) && grad.scalar_type() == x.scalar_type()))
    return conv_backward_by_torch(grad, x, weight, offsets, padding, dilation, needed);
  const Tensor g = last_readable(grad), in = last_readable(x), at = offsets.contiguous();
  const kernel::Groups images = groups(g, at);
  Tensor d_x = at::empty({0}, x.options()), d_weight = at::empty({0}, x.options());
  if (needed[0]) {
    const Tensor w = taps_first(weight);
    d_x = at::empty(x.sizes(), x.options().memory_format(channels_last));
    C10_CUDA_CHECK(conv({.groups = images,
                         .shape = shape,
                         .transposed = true,
                         .x = g.const_data_ptr(),
                         .weight = w.const_data_ptr(),
                         .y = d_x.mutable_data_ptr()},
                        stream()));
  }
  if (needed[1]) {
    const auto sizes = weight.sizes();
    d_weight = at::empty({sizes[0], sizes[1], sizes[3], sizes[4], sizes[2]}, x.options());
    run_conv_weight({.groups = images,
                     .shape = shape,
                     .x = in.const_data_ptr(),
                     .grad = g.const_data_ptr(),
                     .d_weight = d_weight.mutable_data_ptr()},
                    x.options());
    d_weight = d_weight.permute({0, 1, 4, 2, 3});
  }
  return {d_x, d_weight};
}

Pair conv_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                 IntArrayRef dilation, bool) {
  check_conv(x, weight, offsets, padding, dilation);
  return {at::empty_symint(conv_sizes(x, weight, padding, dilation), x.options().memory_format(channels_last)),
          no_moments(x)};
}

Pair conv_backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor&, IntArrayRef, IntArrayRef,
                          Needed needed) {
  return {needed[0] ? at::empty_like(x) : at::empty({0}, x.options()),
          needed[1] ? at::empty_like(weight) : at::empty({0}, weight.options())};
}

struct GroupedConv2dBackward {
  static constexpr const char* name = "moecod::grouped_conv2d_backward";
  using signature = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, Needed);
};

struct GroupedConv2dFunction : Function<GroupedConv2dFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                               IntArrayRef padding, IntArrayRef dilation, bool moments) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, taken] = call<operators::GroupedConv2d>(x, weight, offsets, padding, dilation, moments);
    ctx->mark_non_differentiable({taken});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight, offsets});
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    return {y, taken};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const auto padding = ctx->saved_data["padding"].toIntVector(), dilation = ctx->saved_data["dilation"].toIntVector();
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [d_x, d_weight] = call<GroupedConv2dBackward>(grads[0], saved[0], saved[1], saved[2],
                                                             IntArrayRef(padding), IntArrayRef(dilation), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), {}, {}, {}, {}};
  }
};

Pair conv_with_autograd(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                        IntArrayRef dilation, bool moments) {
  const auto out = GroupedConv2dFunction::apply(x, weight, offsets, padding, dilation, moments);
  return {out[0], out[1]};
}

Pair conv_with_autocast(const Tensor& x, const Tensor& weight, const Tensor& offsets, IntArrayRef padding,
                        IntArrayRef dilation, bool moments) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<operators::GroupedConv2d>(at::autocast::cached_cast(type, x, at::kCUDA),
                                        at::autocast::cached_cast(type, weight, at::kCUDA), offsets, padding, dilation,
                                        moments);
}

// ------------------------------------------------------------------------------------------------ batch normalisation

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                const Tensor& offsets) {
  TORCH_CHECK(x.dim() == 4 && weight.dim() == 2 && x.sym_size(1) == weight.sym_size(1),
              "moecod::grouped_batch_norm: expected x [M, C, H, W] and weight [E, C], got ", x.sym_sizes(), " and ",
              weight.sym_sizes());
  TORCH_CHECK(bias.sym_sizes() == weight.sym_sizes() && running_mean.sym_sizes() == weight.sym_sizes(),
              "moecod::grouped_batch_norm: weight, bias and running statistics must all be [E, C]");
  check_offsets("moecod::grouped_batch_norm", offsets, weight.sym_size(0));
  check_devices("moecod::grouped_batch_norm", "x", x,
                {{"weight", weight}, {"bias", bias}, {"running_mean", running_mean}, {"offsets", offsets}});
}

at::ScalarType wide(const Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

Tensor by_channel(const Tensor& t) { return t.view({1, -1, 1, 1}); }

Pair norm_by_torch(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor running_mean, Tensor running_var,
                   Tensor tracked, const Tensor& offsets, const optional<Tensor>&, bool batch_statistics, bool moves,
                   double momentum, double eps, bool relu) {
  check_norm(x, weight, bias, running_mean, offsets);
  const Tensor y = at::empty_like(x);
  const Tensor used = at::zeros({weight.size(0), 2, weight.size(1)}, x.options().dtype(wide(x)));
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor rows = x.slice(0, begin, end).to(wide(x));
    const int64_t items = rows.size(0) * rows.size(2) * rows.size(3);
    Tensor mean = running_mean[e].to(wide(x)), var = running_var[e].to(wide(x));
    if (batch_statistics && items > 1) {
      mean = rows.mean(at::IntArrayRef{0, 2, 3});
      var = (rows - by_channel(mean)).square().mean(at::IntArrayRef{0, 2, 3});
      if (moves) {
        running_mean[e].add_(momentum * (mean - running_mean[e]));
        running_var[e].add_(momentum * (var * (double(items) / double(items - 1)) - running_var[e]));
        tracked[e].add_(1);
      }
    }
    const Tensor inverse = (var + eps).rsqrt();
    used[e][0].copy_(mean);
    used[e][1].copy_(inverse);
    const Tensor out =
        (rows - by_channel(mean)) * by_channel(inverse * weight[e].to(wide(x))) + by_channel(bias[e].to(wide(x)));
    y.slice(0, begin, end).copy_(relu ? at::relu(out) : out);
  });
  return {y, used};
}

Gradients norm_backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                 const Tensor& used, const Tensor& offsets, bool batch_statistics, bool relu) {
  const Tensor d_x = at::empty_like(x), d_weight = at::zeros_like(weight), d_bias = at::zeros_like(bias);
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor rows = x.slice(0, begin, end).to(wide(x)), mean = used[e][0], inverse = used[e][1];
    const auto items = double(rows.size(0) * rows.size(2) * rows.size(3));
    const Tensor unit = (rows - by_channel(mean)) * by_channel(inverse), scale = weight[e].to(wide(x));
    Tensor d = grad.slice(0, begin, end).to(wide(x));
    if (relu) d = d * (unit * by_channel(scale) + by_channel(bias[e].to(wide(x)))).gt(0);
    const Tensor db = d.sum(at::IntArrayRef{0, 2, 3}), dw = (d * unit).sum(at::IntArrayRef{0, 2, 3});
    d_weight[e].copy_(dw);
    d_bias[e].copy_(db);
    if (batch_statistics && items > 1) d = d - by_channel(db / items) - unit * by_channel(dw / items);
    d_x.slice(0, begin, end).copy_(d * by_channel(inverse * scale));
  });
  return {d_x, d_weight, d_bias};
}

bool norm_takes(const Tensor& x, const Tensor& running_mean) {
  return x.scalar_type() == at::kBFloat16 && running_mean.scalar_type() == at::kFloat && x.size(1) % 8 == 0 &&
         x.numel() > 0;
}

Tensor floats(const Tensor& t) { return readable(t.to(at::kFloat)); }

Pair norm_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor running_mean, Tensor running_var,
                    Tensor tracked, const Tensor& offsets, const optional<Tensor>& moments, bool batch_statistics,
                    bool moves, double momentum, double eps, bool relu) {
  check_norm(x, weight, bias, running_mean, offsets);
  const c10::cuda::CUDAGuard device(x.device());
  const bool contiguous = running_mean.is_contiguous() && running_var.is_contiguous() && tracked.is_contiguous();
  if (!kernel_takes(norm_takes(x, running_mean) && contiguous))
    return norm_by_torch(x, weight, bias, running_mean, running_var, tracked, offsets, moments, batch_statistics, moves,
                         momentum, eps, relu);
  const Tensor in = last_readable(x), at = offsets.contiguous(), w = floats(weight), b = floats(bias);
  const Tensor y = at::empty_like(in);
  const Tensor used = at::empty({w.size(0), 2, w.size(1)}, w.options());
  kernel::Normalise arguments{.groups = groups(in, at),
                              .channels = static_cast<int>(x.size(1)),
                              .x = in.const_data_ptr(),
                              .weight = w.const_data_ptr<float>(),
                              .bias = b.const_data_ptr<float>(),
                              .running_mean = running_mean.mutable_data_ptr<float>(),
                              .running_var = running_var.mutable_data_ptr<float>(),
                              .tracked = tracked.mutable_data_ptr<int64_t>(),
                              .batch_statistics = batch_statistics,
                              .moves = moves,
                              .relu = relu,
                              .momentum = static_cast<float>(momentum),
                              .eps = static_cast<float>(eps),
                              .used = used.mutable_data_ptr<float>(),
                              .y = y.mutable_data_ptr()};
  Tensor taken;
  if (batch_statistics && moments && moments->numel() > 0) {
    taken = *moments;
    arguments.piece = conv_piece(arguments.groups, arguments.channels);
    TORCH_CHECK(taken.size(0) == arguments.groups.pieces(arguments.piece) && taken.is_contiguous(),
                "moecod::grouped_batch_norm: moments must be those that grouped_conv2d returned with x");
  } else if (batch_statistics) {
    arguments.piece = kernel::norm_piece(arguments.groups.items());
    taken = at::empty({arguments.groups.pieces(arguments.piece), 2, x.size(1)}, w.options());
    C10_CUDA_CHECK(cuda::moments(arguments, taken.mutable_data_ptr<float>(), stream()));
  }
  if (arguments.piece == 0) arguments.piece = 1;
  arguments.moments = taken.defined() ? taken.const_data_ptr<float>() : nullptr;
  C10_CUDA_CHECK(normalise(arguments, stream()));
  return {y, used};
}

Gradients norm_backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  const Tensor& used, const Tensor& offsets, bool batch_statistics, bool relu) {
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(norm_takes(x, used) && grad.scalar_type() == x.scalar_type()))
    return norm_backward_by_torch(grad, x, weight, bias, used, offsets, batch_statistics, relu);
  const Tensor g = last_readable(grad), in = last_readable(x), at = offsets.contiguous();
  const Tensor w = floats(weight), b = floats(bias);
  const Tensor d_x = at::empty_like(in), d_weight = at::empty_like(w), d_bias = at::empty_like(b);
  const kernel::Groups images = groups(in, at);
  const Tensor partial =
      at::empty({images.pieces(kernel::norm_piece(images.items())), 2, x.size(1)}, w.options());
  C10_CUDA_CHECK(normalise_backward({.groups = images,
                                     .channels = static_cast<int>(x.size(1)),
                                     .grad = g.const_data_ptr(),
                                     .x = in.const_data_ptr(),
                                     .weight = w.const_data_ptr<float>(),
                                     .bias = b.const_data_ptr<float>(),
                                     .used = used.const_data_ptr<float>(),
                                     .batch_statistics = batch_statistics,
                                     .relu = relu,
                                     .partial = partial.mutable_data_ptr<float>(),
                                     .d_weight = d_weight.mutable_data_ptr<float>(),
                                     .d_bias = d_bias.mutable_data_ptr<float>(),
                                     .d_x = d_x.mutable_data_ptr()},
                                    stream()));
  return {d_x, d_weight.to(weight.scalar_type()), d_bias.to(bias.scalar_type())};
}

Pair norm_shapes(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor running_mean, Tensor, Tensor,
                 const Tensor& offsets, const optional<Tensor>&, bool, bool, double, double, bool) {
  check_norm(x, weight, bias, running_mean, offsets);
  return {at::empty_like(x), at::empty_symint({weight.sym_size(0), 2, weight.sym_size(1)}, x.options().dtype(wide(x)))};
}

Gradients norm_backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor&,
                               const Tensor&, bool, bool) {
  return {at::empty_like(x), at::empty_like(weight), at::empty_like(bias)};
}

struct GroupedBatchNormBackward {
  static constexpr const char* name = "moecod::grouped_batch_norm_backward";
  using signature = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              bool, bool);
};

/// Keeps x and what it was normalised by; the sign that ReLU saw is computed anew.
struct GroupedBatchNormFunction : Function<GroupedBatchNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Tensor& running_mean, const Tensor& running_var, const Tensor& tracked,
                               const Tensor& offsets, const optional<Tensor>& moments, bool batch_statistics,
                               bool moves, double momentum, double eps, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, used] =
        call<operators::GroupedBatchNorm>(x, weight, bias, running_mean, running_var, tracked, offsets, moments,
                                          batch_statistics, moves, momentum, eps, relu);
    ctx->mark_non_differentiable({used});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight, bias, used, offsets});
    ctx->saved_data["batch_statistics"] = batch_statistics;
    ctx->saved_data["relu"] = relu;
    return {y, used};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(13);
    if (!grads[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    std::tie(out[0], out[1], out[2]) =
        call<GroupedBatchNormBackward>(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                       ctx->saved_data["batch_statistics"].toBool(), ctx->saved_data["relu"].toBool());
    for (std::size_t i = 0; i < 3; ++i)
      if (!ctx->needs_input_grad(i)) out[i] = Tensor();
    return out;
  }
};

Pair norm_with_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                        Tensor running_var, Tensor tracked, const Tensor& offsets, const optional<Tensor>& moments,
                        bool batch_statistics, bool moves, double momentum, double eps, bool relu) {
  const auto out = GroupedBatchNormFunction::apply(x, weight, bias, running_mean, running_var, tracked, offsets,
                                                   moments, batch_statistics, moves, momentum, eps, relu);
  return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def(
      "grouped_conv2d(Tensor x, Tensor weight, Tensor offsets, int[2] padding, int[2] dilation, bool moments) -> "
      "(Tensor y, Tensor moments)");
  m.def(
      "grouped_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, int[2] padding, int[2] dilation, "
      "bool[2] needed) -> (Tensor d_x, Tensor d_weight)");
  m.def(
      "conv2d_takes(int channels_in, int channels_out, int height, int width, int[2] kernel, int[2] padding, int[2] dilation) "
      "-> bool", &conv2d_takes);
  m.def(
      "grouped_batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_var, "
      "Tensor(c!) num_batches_tracked, Tensor offsets, Tensor? moments, bool batch_statistics, bool moves, "
      "float momentum, float eps, bool relu) -> (Tensor y, Tensor used)");
  m.def(
      "grouped_batch_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor used, Tensor offsets, "
      "bool batch_statistics, bool relu) -> (Tensor d_x, Tensor d_weight, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_conv2d", &conv_by_kernel);
  m.impl("grouped_conv2d_backward", &conv_backward_by_kernel);
  m.impl("grouped_batch_norm", &norm_by_kernel);
  m.impl("grouped_batch_norm_backward", &norm_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_conv2d", &conv_by_torch);
  m.impl("grouped_conv2d_backward", &conv_backward_by_torch);
  m.impl("grouped_batch_norm", &norm_by_torch);
  m.impl("grouped_batch_norm_backward", &norm_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_conv2d", &conv_shapes);
  m.impl("grouped_conv2d_backward", &conv_backward_shapes);
  m.impl("grouped_batch_norm", &norm_shapes);
  m.impl("grouped_batch_norm_backward", &norm_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_conv2d", &conv_with_autograd);
  m.impl("grouped_batch_norm", &norm_with_autograd);
  m.impl("grouped_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_batch_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) { m.impl("grouped_conv2d", &conv_with_autocast); }

}  // namespace moecod::cuda
