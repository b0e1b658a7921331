// The operators torch.ops.moecod.grouped_linear, activation(x) weight^T + bias, each row by its expert's weights; and
// the gated hidden layer of such an expert, grouped_swiglu where no gradient is wanted, grouped_swiglu_kept where one is.
//
// In bfloat16, with widths that are multiples of 8: on compute capability 9.0 by the convolution's kernels, of which a
// linear layer is the case of one tap, and on 10.0 by at::_grouped_mm; the offsets stay on the device. One expert alone has
// LibTorch's dense products. Else expert by expert, which reads the offsets back and is counted.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <string>

#include "cuda/grouped_images.hpp"
#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"
#include "moecod/layers/activation.hpp"

namespace moecod::cuda {
namespace {

using at::Tensor;
using layers::Activation;
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
              "moecod::grouped_linear: bias must be [E, out] of x's type ", x.scalar_type());
  check_offsets("moecod::grouped_linear", offsets, weight.sym_size(0));
  check_devices("moecod::grouped_linear", x, {weight, bias, offsets});
}

void check_activated(const Tensor& x, std::string_view activation, const optional<Tensor>& activated_x) {
  if (!activated_x || !activated_x->defined()) return;
  TORCH_CHECK(activation != "none" && !activated_x->requires_grad(),
              "moecod::grouped_linear: activated must be that activation of x, without a gradient of its own");
  const bool gates = layers::activation_named(activation) == Activation::swiglu;
  c10::SymDimVector sizes(x.sym_sizes());
  if (gates) sizes.back() = sizes.back() / 2;
  TORCH_CHECK(activated_x->sym_sizes() == c10::SymIntArrayRef(sizes), "moecod::grouped_linear: activated must be ",
              c10::SymIntArrayRef(sizes), ", got ", activated_x->sym_sizes());
  TORCH_CHECK(activated_x->scalar_type() == x.scalar_type(), "moecod::grouped_linear: x and activated must have one type, got ",
              x.scalar_type(), " and ", activated_x->scalar_type());
  check_devices("moecod::grouped_linear", x, {activated_x});
}

c10::SymDimVector with_width(const Tensor& x, const c10::SymInt& width) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = width;
  return sizes;
}

/// x as [items, width], contiguous.
Tensor flat(const Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

// ------------------------------------------------------------------------------------------- by LibTorch's operations

Tensor linear_by_torch(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                       std::string_view activation, const optional<Tensor>& activated_x) {
  check_linear(x, weight, bias, offsets, activation);
  check_activated(x, activation, activated_x);
  const Tensor y = at::empty_symint(with_width(x, weight.sym_size(1)), x.options());
  const Tensor in = activated_x && activated_x->defined()
                        ? readable(flat(*activated_x))
                        : layers::activate(flat(x), layers::activation_named(activation));
  const Tensor out = y.view({-1, weight.size(1)});
  each_expert(x, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    out.slice(0, begin, end)
        .copy_(at::linear(in.slice(0, begin, end), weight[e], bias && bias->defined() ? bias->select(0, e) : Tensor()));
  }, items_a_row(x));
  return y;
}

/// d_h of activation(h).
Tensor activation_backward(const Tensor& grad, const Tensor& h, Activation activation) {
  switch (activation) {
    case Activation::none: return grad;
    case Activation::gelu: return at::gelu_backward(grad, h);
    case Activation::swiglu: {
      const auto parts = h.chunk(2, -1);
      const Tensor s = at::sigmoid(parts[0]);
      return at::cat({grad * parts[1] * s * (1 + parts[0] * (1 - s)), grad * parts[0] * s}, -1);
    }
  }
  return {};
}

Gradients linear_backward_by_torch(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                   std::string_view activation, Needed needed) {
  const Activation kind = layers::activation_named(activation);
  const Tensor h = flat(x), g = flat(grad), a = layers::activate(h, kind);
  const Tensor d_a = at::empty({h.size(0), weight.size(2)}, h.options());
  const Tensor d_weight = needed[1] ? at::zeros_like(weight) : at::empty({0}, weight.options());
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

/// Whether there is one expert, whose products are LibTorch's own.
bool is_alone(const Tensor& weight) { return weight.size(0) == 1; }

/// What one of the kernels takes, with the offsets on the device.
bool takes(const Tensor& x, const Tensor& weight) {
  const int major = at::cuda::getCurrentDeviceProperties()->major;
  return x.scalar_type() == at::kBFloat16 && (is_alone(weight) || major == 9 || major == 10) && weight.size(1) % 8 == 0 &&
         weight.size(2) % 8 == 0 && weight.size(0) < 1024 && x.numel() > 0 && x.numel() / x.size(-1) < std::numeric_limits<int32_t>::max() && aligned(x) && aligned(weight);
}

/// All items as rows of a matrix, sorted by expert.
struct Rows {
  Tensor offsets;
  kernel::Groups groups;
  Tensor ends() const { return offsets.slice(0, 1); }
};
Rows rows_of(const Tensor& x, const Tensor& offsets) {
  const int64_t each = items_a_row(x);
  const Tensor at = each == 1 ? offsets.contiguous() : offsets * each;
  return {at, groups_of(at, x.size(0) * each, 1)};
}

/// A linear layer is a convolution of images of one position.
kernel::ConvShape linear_shape(const Tensor& weight) {
  return {.height = 1,
          .width = 1,
          .in = static_cast<int>(weight.size(2)),
          .out = static_cast<int>(weight.size(1))};
}
bool by_conv(const Tensor& weight) {
  return weight.size(0) <= kernel::max_experts && conv_takes(linear_shape(weight));
}

/// x weight^T, or x weight with `transposed`.
Tensor product(const Tensor& x, const Tensor& weight, const Rows& rows, bool transposed) {
  if (is_alone(weight)) return at::matmul(x, transposed ? weight[0] : weight[0].t());
  if (!by_conv(weight)) return at::_grouped_mm(x, transposed ? weight : weight.transpose(1, 2), rows.ends());
  const Tensor y = at::empty({x.size(0), weight.size(transposed ? 2 : 1)}, x.options());
  C10_CUDA_CHECK(conv({.groups = rows.groups,
                       .shape = linear_shape(weight),
                       .transposed = transposed,
                       .x = x.const_data_ptr(),
                       .weight = weight.const_data_ptr(),
                       .y = y.mutable_data_ptr()},
                      stream()));
  return y;
}

/// grad^T a of each expert.
Tensor weight_gradient(const Tensor& grad, const Tensor& a, const Tensor& weight, const Rows& rows) {
  if (is_alone(weight)) return at::matmul(grad.t(), a).unsqueeze(0);
  if (by_conv(weight)) {
    const Tensor d_weight = at::empty_like(weight);
    run_conv_weight({.groups = rows.groups,
                     .shape = linear_shape(weight),
                     .x = a.const_data_ptr(),
                     .grad = grad.const_data_ptr(),
                     .d_weight = d_weight.mutable_data_ptr()},
                    a.options());
    return d_weight;
  }
  const Tensor d_weight = at::_grouped_mm(grad.t(), a, rows.ends());
  // A product over no rows is zero; the kernel does not promise it.
  C10_CUDA_CHECK(zero_idle({.groups = rows.groups,
                            .row_bytes = d_weight.size(1) * d_weight.size(2) * 2,
                            .x = d_weight.mutable_data_ptr()},
                           stream()));
  return d_weight;
}

kernel::Activation kind(Activation activation) {
  return activation == Activation::gelu ? kernel::Activation::gelu : kernel::Activation::swiglu;
}

Tensor activated(const Tensor& h, Activation activation, int64_t width) {
  if (activation == Activation::none) return h;
  const Tensor a = at::empty({h.size(0), width}, h.options());
  C10_CUDA_CHECK(activate({.h = h.const_data_ptr(),
                           .rows = h.size(0),
                           .width = width,
                           .activation = kind(activation),
                           .type = kernel::Type::bfloat16,
                           .a = a.mutable_data_ptr()},
                          stream()));
  return a;
}

/// Those of a linear layer. Of one expert nothing but the sums over columns asks for them, which take items a row.
Rows linear_rows(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  return is_alone(weight) ? Rows{offsets, groups_of(offsets, x.size(0), items_a_row(x))} : rows_of(x, offsets);
}

Tensor linear_by_kernel(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                        std::string_view activation, const optional<Tensor>& activated_x) {
  check_linear(x, weight, bias, offsets, activation);
  check_activated(x, activation, activated_x);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight))) return linear_by_torch(x, weight, bias, offsets, activation, activated_x);
  const Tensor w = weight.contiguous();
  const Rows rows = linear_rows(x, weight, offsets);
  const Tensor a = activated_x && activated_x->defined()
                       ? readable(flat(*activated_x))
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

/// d_h of swiglu(h), and a computed anew, from the gradient of the layer that it goes into.
std::pair<Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& h, const Tensor& weight, const Rows& rows) {
  const Tensor d_h = at::empty_like(h), a = at::empty({h.size(0), weight.size(2)}, h.options());
  C10_CUDA_CHECK(conv({.groups = rows.groups,
                       .shape = linear_shape(weight),
                       .transposed = true,
                       .gated = true,
                       .x = grad.const_data_ptr(),
                       .weight = weight.const_data_ptr(),
                       .y = d_h.mutable_data_ptr(),
                       .h = h.data_ptr(),
                       .a = a.mutable_data_ptr()},
                      stream()));
  return {d_h, a};
}

Gradients linear_backward_by_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                    std::string_view activation, Needed needed) {
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && grad.scalar_type() == x.scalar_type() && aligned(grad)))
    return linear_backward_by_torch(grad, x, weight, offsets, activation, needed);
  const Activation before = layers::activation_named(activation);
  const Tensor w = weight.contiguous(), g = flat(grad), h = flat(x);
  const Rows rows = linear_rows(x, weight, offsets);
  Tensor d_x = at::empty({0}, x.options()), d_weight = d_x, d_bias = d_x;
  Tensor a = before == Activation::none ? h : Tensor();
  if (needed[0]) {
    if (before == Activation::swiglu && !is_alone(w) && by_conv(w)) {
      std::tie(d_x, a) = gate_backward(g, h, w, rows);
    } else {
      d_x = product(g, w, rows, /*transposed=*/true);
      if (before != Activation::none) {
        const Tensor d_a = d_x;
        d_x = at::empty_like(h);
        if (needed[1]) a = at::empty_like(d_a);
        C10_CUDA_CHECK(activate_backward({.d_a = d_a.const_data_ptr(),
                                          .h = h.const_data_ptr(),
                                          .rows = h.size(0),
                                          .width = d_a.size(1),
                                          .activation = kind(before),
                                          .type = kernel::Type::bfloat16,
                                          .d_h = d_x.mutable_data_ptr(),
                                          .a = a.defined() ? a.mutable_data_ptr() : nullptr},
                                         stream()));
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

// --------------------------------------------------------------------------------------------------- the hidden layer

using Kept = std::tuple<Tensor, Tensor>;  // h, swiglu(h)

void check_swiglu(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_linear(x, weight, std::nullopt, offsets, "none");
  TORCH_CHECK(weight.sym_size(1) % 2 == 0, "moecod::grouped_swiglu: weight must be [E, 2 n, in], got ",
              weight.sym_sizes());
}

Kept swiglu_kept_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  const Tensor h = call<operators::GroupedLinear>(x, weight, std::nullopt, offsets, "none", std::nullopt);
  return {h, layers::activate(h, Activation::swiglu)};
}

Tensor swiglu_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  return std::get<1>(swiglu_kept_by_torch(x, weight, offsets));
}

/// swiglu(x weight^T); what goes into it is kept in h, unless that is undefined.
Tensor gate(const Tensor& x, const Tensor& weight, const Tensor& h, const Rows& rows) {
  const Tensor a = at::empty({x.size(0), weight.size(1) / 2}, x.options());
  C10_CUDA_CHECK(conv({.groups = rows.groups,
                       .shape = linear_shape(weight),
                       .gated = true,
                       .x = x.const_data_ptr(),
                       .weight = weight.const_data_ptr(),
                       .y = a.mutable_data_ptr(),
                       .h = h.defined() ? h.mutable_data_ptr() : nullptr},
                      stream()));
  return a;
}

Kept swiglu_kept_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && weight.size(1) % 16 == 0)) return swiglu_kept_by_torch(x, weight, offsets);
  const Tensor in = flat(x), w = weight.contiguous();
  const Rows rows = rows_of(x, offsets);
  const bool fused = by_conv(w);
  const Tensor h = fused ? at::empty({in.size(0), w.size(1)}, x.options()) : product(in, w, rows, /*transposed=*/false);
  const Tensor a = fused ? gate(in, w, h, rows) : activated(h, Activation::swiglu, w.size(1) / 2);
  return {h.view_symint(with_width(x, w.size(1))), a.view_symint(with_width(x, w.size(1) / 2))};
}

Tensor swiglu_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && weight.size(1) % 16 == 0)) return swiglu_by_torch(x, weight, offsets);
  const Tensor in = flat(x), w = weight.contiguous();
  const Rows rows = rows_of(x, offsets);
  const int64_t hidden = w.size(1) / 2;
  const Tensor a = by_conv(w) ? gate(in, w, {}, rows)
                              : activated(product(in, w, rows, /*transposed=*/false), Activation::swiglu, hidden);
  return a.view_symint(with_width(x, hidden));
}

Tensor swiglu_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  return at::empty_symint(with_width(x, weight.sym_size(1) / 2), x.options());
}

Kept swiglu_kept_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  return {at::empty_symint(with_width(x, weight.sym_size(1)), x.options()), swiglu_shapes(x, weight, offsets)};
}

template <class Operator>
auto swiglu_with_autocast(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<Operator>(at::autocast::cached_cast(type, x, at::kCUDA),
                        at::autocast::cached_cast(type, weight, at::kCUDA), offsets);
}

// ------------------------------------------------------------------------------------------------ shapes and autograd

Tensor linear_shapes(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                     std::string_view activation, const optional<Tensor>&) {
  check_linear(x, weight, bias, offsets, activation);
  return at::empty_symint(with_width(x, weight.sym_size(1)), x.options());
}

Gradients linear_backward_shapes(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor&, std::string_view,
                                 Needed needed) {
  return {needed[0] ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options()),
          needed[1] ? at::empty_symint(weight.sym_sizes(), weight.options()) : at::empty({0}, weight.options()),
          needed[2] ? at::empty_symint({weight.sym_size(0), weight.sym_size(1)}, weight.options())
                    : at::empty({0}, weight.options())};
}

struct GroupedLinearBackward {
  static constexpr const char* name = "moecod::grouped_linear_backward";
  using signature = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, std::string_view, Needed);
};

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

/// Keeps x alone; swiglu(h) has no gradient of its own, since the layer that takes it gives that of h.
struct GroupedSwiGluFunction : Function<GroupedSwiGluFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& offsets) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets});
    ctx->set_materialize_grads(false);
    const auto [h, a] = call<operators::GroupedSwiGluKept>(x, weight, offsets);
    ctx->mark_non_differentiable({a});
    return {h, a};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1), false};
    const auto [d_x, d_weight, d_bias] =
        call<GroupedLinearBackward>(grads[0], saved[0], saved[1], saved[2], std::string_view("none"), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), {}};
  }
};

Kept swiglu_kept_with_autograd(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  const variable_list out = GroupedSwiGluFunction::apply(x, weight, offsets);
  return {out[0], out[1]};
}

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
  m.def("grouped_swiglu(Tensor x, Tensor weight, Tensor offsets) -> Tensor");
  m.def("grouped_swiglu_kept(Tensor x, Tensor weight, Tensor offsets) -> (Tensor h, Tensor a)");
  m.def(
      "grouped_linear(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, str activation, Tensor? activated=None) -> "
      "Tensor");
  m.def(
      "grouped_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, str activation, bool[3] needed) -> "
      "(Tensor d_x, Tensor d_weight, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_swiglu", &swiglu_by_kernel);
  m.impl("grouped_swiglu_kept", &swiglu_kept_by_kernel);
  m.impl("grouped_linear", &linear_by_kernel);
  m.impl("grouped_linear_backward", &linear_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_swiglu", &swiglu_by_torch);
  m.impl("grouped_swiglu_kept", &swiglu_kept_by_torch);
  m.impl("grouped_linear", &linear_by_torch);
  m.impl("grouped_linear_backward", &linear_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_swiglu", &swiglu_shapes);
  m.impl("grouped_swiglu_kept", &swiglu_kept_shapes);
  m.impl("grouped_linear", &linear_shapes);
  m.impl("grouped_linear_backward", &linear_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_linear", &linear_with_autograd);
  m.impl("grouped_swiglu_kept", &swiglu_kept_with_autograd);
  m.impl("grouped_linear_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_swiglu", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) {
  m.impl("grouped_linear", &linear_with_autocast);
  m.impl("grouped_swiglu", &swiglu_with_autocast<operators::GroupedSwiGlu>);
  m.impl("grouped_swiglu_kept", &swiglu_with_autocast<operators::GroupedSwiGluKept>);
}

}  // namespace moecod::cuda
