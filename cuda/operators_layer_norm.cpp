// The operator torch.ops.moecod.grouped_layer_norm: rows sorted by expert, each normalised over its last dimension with its
// expert's weight and bias.
//
// The kernels take float32, bfloat16 and float16 of widths that are multiples of 16 bytes, up to 2,048 bytes; the rest
// goes expert by expert by LibTorch's operations, which reads the offsets back, and is counted. Weights and biases are
// float32, also of rows in bfloat16, as are their gradients.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"

namespace moecod::cuda {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& offsets) {
  constexpr const char* name = "moecod::grouped_layer_norm";
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kFloat, name, ": weight must be [E, C] float32, got ",
              weight.sym_sizes(), " ", weight.scalar_type());
  TORCH_CHECK(bias.sym_sizes() == weight.sym_sizes() && bias.scalar_type() == at::kFloat, name,
              ": bias must be float32 of weight's shape ", weight.sym_sizes(), ", got ", bias.sym_sizes(), " ",
              bias.scalar_type());
  TORCH_CHECK(x.dim() >= 2 && x.sym_size(-1) == weight.sym_size(1), name, ": x must be [M, ..., ", weight.sym_size(1),
              "], got ", x.sym_sizes());
  check_offsets(name, offsets, weight.sym_size(0));
  check_devices(name, "x", x, {{"weight", weight}, {"bias", bias}, {"offsets", offsets}});
}

/// x as [items, C].
Tensor flat(const Tensor& x) { return x.reshape({-1, x.size(-1)}); }

Tensor by_torch(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& offsets, double eps) {
  check(x, weight, bias, offsets);
  const Tensor in = flat(x), y = at::empty(in.sizes(), x.options());
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const auto type = x.scalar_type();
    y.slice(0, begin, end)
        .copy_(std::get<0>(at::native_layer_norm(in.slice(0, begin, end).contiguous(), {x.size(-1)}, weight[e].to(type),
                                                 bias[e].to(type), eps)));
  }, items_a_row(x));
  return y.view(x.sizes());
}

Gradients backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets, double eps) {
  const Tensor g = flat(grad), in = flat(x), d_x = at::empty(in.sizes(), x.options());
  const Tensor d_weight = at::zeros_like(weight), d_bias = at::zeros_like(weight);
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor rows = in.slice(0, begin, end).contiguous(), w = weight[e].to(x.scalar_type());
    const auto [y, mean, rstd] = at::native_layer_norm(rows, {x.size(-1)}, w, w, eps);
    const auto [dx, dw, db] = at::native_layer_norm_backward(g.slice(0, begin, end).contiguous(), rows, {x.size(-1)}, mean,
                                                             rstd, w, w, {true, true, true});
    d_x.slice(0, begin, end).copy_(dx);
    d_weight[e].copy_(dw);
    d_bias[e].copy_(db);
  }, items_a_row(x));
  return {d_x.view(x.sizes()), d_weight, d_bias};
}

bool takes(const Tensor& x) {
  const auto type = kernel_type(x);
  return type && kernel::layer_norm_takes(x.size(-1), *type);
}

Tensor by_kernel(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& offsets, double eps) {
  check(x, weight, bias, offsets);
  if (!kernel_takes(takes(x))) return by_torch(x, weight, bias, offsets, eps);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor in = readable(x), w = readable(weight), b = readable(bias);
  const Tensor at = offsets.contiguous();
  const Tensor y = at::empty(x.sizes(), x.options());
  C10_CUDA_CHECK(layer_norm({.groups = groups_of(at, x.size(0), items_a_row(x)),
                             .width = x.size(-1),
                             .type = *kernel_type(x),
                             .eps = static_cast<float>(eps),
                             .x = in.const_data_ptr(),
                             .weight = w.const_data_ptr<float>(),
                             .bias = b.const_data_ptr<float>(),
                             .y = y.mutable_data_ptr()},
                            stream()));
  return y;
}

Gradients backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets, double eps) {
  if (!kernel_takes(takes(x) && grad.scalar_type() == x.scalar_type()))
    return backward_by_torch(grad, x, weight, offsets, eps);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor g = readable(grad), in = readable(x), w = readable(weight);
  const Tensor at = offsets.contiguous();
  const kernel::Groups rows = groups_of(at, x.size(0), items_a_row(x));
  const Tensor d_x = at::empty(x.sizes(), x.options());
  const Tensor d_weight = at::empty(weight.sizes(), weight.options()), d_bias = at::empty_like(d_weight);
  const Tensor partial =
      at::empty({2, rows.pieces(kernel::layer_norm_piece(rows.items())), weight.size(1)}, weight.options());
  C10_CUDA_CHECK(layer_norm_backward({.groups = rows,
                                      .width = x.size(-1),
                                      .type = *kernel_type(x),
                                      .eps = static_cast<float>(eps),
                                      .grad = g.const_data_ptr(),
                                      .x = in.const_data_ptr(),
                                      .weight = w.const_data_ptr<float>(),
                                      .partial = partial.mutable_data_ptr<float>(),
                                      .d_weight = d_weight.mutable_data_ptr<float>(),
                                      .d_bias = d_bias.mutable_data_ptr<float>(),
                                      .d_x = d_x.mutable_data_ptr()},
                                     stream()));
  return {d_x, d_weight, d_bias};
}

Tensor shapes(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& offsets, double) {
  check(x, weight, bias, offsets);
  return at::empty_symint(x.sym_sizes(), x.options());
}

Gradients backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor&, double) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_like(weight), at::empty_like(weight)};
}

struct Backward {
  static constexpr const char* name = "moecod::grouped_layer_norm_backward";
  using signature = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double);
};

struct LayerNormFunction : Function<LayerNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& offsets, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets});
    ctx->saved_data["eps"] = eps;
    return call<operators::GroupedLayerNorm>(x, weight, bias, offsets, eps);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [d_x, d_weight, d_bias] =
        call<Backward>(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["eps"].toDouble());
    return {d_x, d_weight, d_bias, {}, {}};
  }
};

Tensor with_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& offsets, double eps) {
  return LayerNormFunction::apply(x, weight, bias, offsets, eps);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def("grouped_layer_norm(Tensor x, Tensor weight, Tensor bias, Tensor offsets, float eps) -> Tensor");
  m.def(
      "grouped_layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, float eps) -> "
      "(Tensor d_x, Tensor d_weight, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_layer_norm", &by_kernel);
  m.impl("grouped_layer_norm_backward", &backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_layer_norm", &by_torch);
  m.impl("grouped_layer_norm_backward", &backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_layer_norm", &shapes);
  m.impl("grouped_layer_norm_backward", &backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_layer_norm", &with_autograd);
  m.impl("grouped_layer_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moecod::cuda
