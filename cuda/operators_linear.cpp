// The operator torch.ops.moecod.grouped_linear, activation(x) weight^T + bias, each row by its expert's weights.
//
// In bfloat16, with widths that are multiples of 8: on compute capability 9.0 by the convolution's kernels, of which a
// linear layer is the case of one tap, and where those do not run (10.0, more than 256 experts) by at::_grouped_mm; the
// offsets stay on the device. One expert alone has LibTorch's dense products. Else (1,024 experts and more, other types, widths and
// GPUs) expert by expert, which reads the offsets back and is counted.
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <string>

#include "cuda/grouped_rows.hpp"

namespace moecod::cuda {
namespace {

using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Needed = std::array<bool, 3>;  // d_x, d_weight, d_bias; what was not asked for is empty
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

void check_linear(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                  std::string_view activation) {
  TORCH_CHECK(weight.dim() == 3, "moecod::grouped_linear: weight must be [E, out, in], got ", weight.sym_sizes());
  const int64_t gates = layers::activation_named(activation) == Activation::swiglu ? 2 : 1;
  TORCH_CHECK(x.dim() >= 2 && x.sym_size(-1) == gates * weight.sym_size(2),
              "moecod::grouped_linear: x must be [M, ..., ", gates * weight.sym_size(2), "], got ", x.sym_sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "moecod::grouped_linear: x and weight must have one type, got ",
              x.scalar_type(), " and ", weight.scalar_type());
  TORCH_CHECK(!bias || !bias->defined() || (bias->dim() == 2 && bias->sym_size(0) == weight.sym_size(0) &&
                                            bias->sym_size(1) == weight.sym_size(1) &&
                                            bias->scalar_type() == x.scalar_type()),
              "moecod::grouped_linear: bias must be [", weight.sym_size(0), ", ", weight.sym_size(1), "] ", x.scalar_type(), ", got ",
              bias->sym_sizes(), " ", bias->scalar_type());
  check_offsets("moecod::grouped_linear", offsets, weight.sym_size(0));
  check_devices("moecod::grouped_linear", "x", x, {{"weight", weight}, {"bias", bias}, {"offsets", offsets}});
}

void check_activated(const Tensor& x, std::string_view activation, const optional<Tensor>& activated_x) {
  if (!activated_x || !activated_x->defined()) return;
  TORCH_CHECK(activation != "none" && !activated_x->requires_grad(),
              "moecod::grouped_linear: activated must be that activation of x, without a gradient of its own");
  const bool gates = layers::activation_named(activation) == Activation::swiglu;
  c10::SymDimVector sizes(x.sym_sizes());
  if (gates) sizes.back() = sizes.back() / 2;
  check_like("moecod::grouped_linear", "activated", *activated_x, sizes, x);
}

void check_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                           std::string_view activation) {
  check_linear(x, weight, std::nullopt, offsets, activation);
  check_like("moecod::grouped_linear_backward", "grad", grad, with_width(x, weight.sym_size(1)), x);
}

// ------------------------------------------------------------------------------------------- by LibTorch's operations

Tensor linear_by_torch(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                       std::string_view activation, const optional<Tensor>& activated_x) {
  check_linear(x, weight, bias, offsets, activation);
  check_activated(x, activation, activated_x);
  const Tensor y = at::empty_symint(with_width(x, weight.sym_size(1)), x.options());
  const Tensor in = activated_x && activated_x->defined()
                        ? flat(*activated_x)
                        : layers::activate(flat(x), layers::activation_named(activation));
  const Tensor out = y.view({-1, weight.size(1)});
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    out.slice(0, begin, end)
        .copy_(at::linear(in.slice(0, begin, end), weight[e], bias && bias->defined() ? bias->select(0, e) : Tensor()));
  }, items_a_row(x));
  return y;
}

Gradients linear_backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                   std::string_view activation, Needed needed) {
  check_linear_backward(grad, x, weight, offsets, activation);
  const Activation kind = layers::activation_named(activation);
  const Tensor h = flat(x), g = flat(grad), a = layers::activate(h, kind);
  const Tensor d_a = at::empty({h.size(0), weight.size(2)}, h.options());
  const Tensor d_weight = needed[1] ? at::zeros_like(weight, at::MemoryFormat::Contiguous) : at::empty({0}, weight.options());
  const Tensor d_bias = needed[2] ? at::zeros({weight.size(0), weight.size(1)}, weight.options())
                                  : at::empty({0}, weight.options());
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor rows = g.slice(0, begin, end);
    if (needed[0]) d_a.slice(0, begin, end).copy_(rows.matmul(weight[e]));
    if (needed[1]) d_weight[e].copy_(rows.t().matmul(a.slice(0, begin, end)));
    if (needed[2]) d_bias[e].copy_(rows.sum(0));
  }, items_a_row(x));
  return {needed[0] ? activation_backward(d_a, h, kind).view(x.sizes()) : at::empty({0}, x.options()), d_weight,
          d_bias};
}

// ------------------------------------------------------------------------------------------------------ by the kernels

/// Those of a linear layer. Of one expert nothing but the sums over columns asks for them, which take items a row.
Rows linear_rows(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  if (!is_alone(weight)) return rows_of(x, offsets);
  const Tensor at = offsets.contiguous();
  return {at, groups_of(at, x.size(0), items_a_row(x))};
}

Tensor linear_by_kernel(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                        std::string_view activation, const optional<Tensor>& activated_x) {
  check_linear(x, weight, bias, offsets, activation);
  check_activated(x, activation, activated_x);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight))) return linear_by_torch(x, weight, bias, offsets, activation, activated_x);
  const Tensor w = readable(weight);
  const Rows rows = linear_rows(x, weight, offsets);
  const Tensor a = activated_x && activated_x->defined()
                       ? flat(*activated_x)
                       : activated(flat(x), layers::activation_named(activation), weight.size(2));
  if (is_alone(w))  // the bias in the product's epilogue
    return at::linear(a, w[0], bias && bias->defined() ? (*bias)[0] : Tensor())
        .view_symint(with_width(x, weight.sym_size(1)));
  const Tensor y = product(a, w, rows, /*transposed=*/false);
  if (bias && bias->defined()) {
    const Tensor b = bias->contiguous();
    C10_CUDA_CHECK(add_bias({.groups = rows.groups,
                             .bias = b.const_data_ptr(),
                             .width = y.size(1),
                             .type = kernel::Type::bfloat16,
                             .x = y.mutable_data_ptr()},
                            stream()));
  }
  return y.view_symint(with_width(x, weight.sym_size(1)));
}

Gradients linear_backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                    std::string_view activation, Needed needed) {
  check_linear_backward(grad, x, weight, offsets, activation);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight)))
    return linear_backward_by_torch(grad, x, weight, offsets, activation, needed);
  const Activation before = layers::activation_named(activation);
  const Tensor w = readable(weight), g = flat(grad), h = flat(x);
  const Rows rows = linear_rows(x, weight, offsets);
  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor d_x = none(), d_weight = none(), d_bias = none();
  Tensor a = before == Activation::none ? h : Tensor();
  if (needed[0]) {
    if (before == Activation::swiglu && by_conv(w)) {
      std::tie(d_x, a, std::ignore) = gate_backward(g, h, w, rows);
    } else {
      d_x = product(g, w, rows, /*transposed=*/true);
      if (before != Activation::none) {
        const auto [d_h, again] = through_activation(d_x, h, before, needed[1]);
        d_x = d_h;
        a = again;
      }
    }
    d_x = d_x.view(x.sizes());
  }
  if (needed[1]) {
    if (!a.defined()) a = activated(h, before, weight.size(2));
    d_weight = weight_gradient(g, a, w, rows);
  }
  if (needed[2]) {
    d_bias = at::empty({weight.size(0), weight.size(1)}, x.options());
    const Tensor partial =
        at::empty({rows.groups.pieces(kernel::column_sums_piece), weight.size(1)}, x.options().dtype(at::kFloat));
    C10_CUDA_CHECK(column_sums({.groups = rows.groups,
                                .x = g.const_data_ptr(),
                                .width = g.size(1),
                                .type = kernel::Type::bfloat16,
                                .partial = partial.mutable_data_ptr<float>(),
                                .sums = d_bias.mutable_data_ptr()},
                               stream()));
  }
  return {d_x, d_weight, d_bias};
}

// ------------------------------------------------------------------------------------------------ shapes and autograd

Tensor linear_shapes(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                     std::string_view activation, const optional<Tensor>& activated_x) {
  check_linear(x, weight, bias, offsets, activation);
  check_activated(x, activation, activated_x);
  return at::empty_symint(with_width(x, weight.sym_size(1)), x.options());
}

Gradients linear_backward_shapes(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                 std::string_view activation, Needed needed) {
  check_linear_backward(grad, x, weight, offsets, activation);
  return {needed[0] ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options()),
          needed[1] ? at::empty_symint(weight.sym_sizes(), weight.options()) : at::empty({0}, weight.options()),
          needed[2] ? at::empty_symint({weight.sym_size(0), weight.sym_size(1)}, weight.options())
                    : at::empty({0}, weight.options())};
}

/// Keeps x alone, of before the activation.
struct GroupedLinearFunction : Function<GroupedLinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                        const Tensor& offsets, std::string_view activation, const optional<Tensor>& activated_x) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets});
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["bias"] = bias && bias->defined();
    return call<operators::GroupedLinear>(x, weight, bias, offsets, activation, activated_x);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    // needs_input_grad counts the tensors that were given.
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                        ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)};
    const auto [d_x, d_weight, d_bias] = call<GroupedLinearBackward>(grads[0], saved[0], saved[1], saved[2],
                                                                     std::string_view(activation), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), needed[2] ? d_bias : Tensor(), {}, {}, {}};
  }
};

Tensor linear_with_autograd(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                            std::string_view activation, const optional<Tensor>& activated_x) {
  return GroupedLinearFunction::apply(x, weight, bias, offsets, activation, activated_x);
}

Tensor linear_with_autocast(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                            std::string_view activation, const optional<Tensor>& activated_x) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<operators::GroupedLinear>(
      at::autocast::cached_cast(type, x, at::kCUDA), at::autocast::cached_cast(type, weight, at::kCUDA),
      bias && bias->defined() ? optional(at::autocast::cached_cast(type, *bias, at::kCUDA)) : std::nullopt, offsets,
      activation, activated_x ? optional(at::autocast::cached_cast(type, *activated_x, at::kCUDA)) : std::nullopt);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def(
      "grouped_linear(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, str activation, Tensor? activated=None) -> "
      "Tensor");
  m.def(
      "grouped_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, str activation, bool[3] needed) -> "
      "(Tensor d_x, Tensor d_weight, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_linear", &linear_by_kernel);
  m.impl("grouped_linear_backward", &linear_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_linear", &linear_by_torch);
  m.impl("grouped_linear_backward", &linear_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_linear", &linear_shapes);
  m.impl("grouped_linear_backward", &linear_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_linear", &linear_with_autograd);
  m.impl("grouped_linear_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) {
  m.impl("grouped_linear", &linear_with_autocast);
}

}  // namespace moecod::cuda
