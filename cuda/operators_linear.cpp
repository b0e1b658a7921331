// The operators torch.ops.moecod.grouped_linear, activation(x) weight^T + bias, each row by its expert's weights, and
// grouped_swiglu, the gated hidden layer of such an expert where no gradient is wanted.
//
// In bfloat16 on compute capability 9.0 and 10.0, with widths that are multiples of 8, by at::_grouped_mm, whose
// offsets stay on the device, and for one expert by LibTorch's dense products; else expert by expert, which reads the offsets back and is counted.
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
#include <string>

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
                                            bias->sym_size(1) == weight.sym_size(1)),
              "moecod::grouped_linear: bias must be [E, out]");
  check_offsets("moecod::grouped_linear", offsets, weight.sym_size(0));
}

c10::SymDimVector with_width(const Tensor& x, const c10::SymInt& width) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = width;
  return sizes;
}

/// x as [items, width], contiguous.
Tensor flat(const Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

// ------------------------------------------------------------------------------------------- by LibTorch's operations

/// Items a row of x [M, ..., width].
int64_t items_a_row(const Tensor& x) { return x.size(0) > 0 ? x.numel() / x.size(0) / x.size(-1) : 1; }

Tensor linear_by_torch(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                       std::string_view activation) {
  check_linear(x, weight, bias, offsets, activation);
  const Tensor y = at::empty_symint(with_width(x, weight.sym_size(1)), x.options());
  const Tensor in = layers::activate(flat(x), layers::activation_named(activation)), out = y.view({-1, weight.size(1)});
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

/// What at::_grouped_mm has a kernel for, that reads the offsets on the device.
bool takes(const Tensor& x, const Tensor& weight) {
  const int major = at::cuda::getCurrentDeviceProperties()->major;
  return x.scalar_type() == at::kBFloat16 && (major == 9 || major == 10) && weight.size(1) % 8 == 0 &&
         weight.size(2) % 8 == 0 && weight.size(0) < 1024 && x.numel() > 0 && aligned(x) && aligned(weight);
}

kernel::Groups groups(const Tensor& x, const Tensor& offsets) { return groups_of(offsets, x.size(0), items_a_row(x)); }

/// Products of one expert are LibTorch's own, with the bias in their epilogue.
bool is_alone(const Tensor& weight) { return weight.size(0) == 1; }

/// The end of each expert's items.
Tensor ends(const kernel::Groups& groups, const Tensor& offsets) {
  const Tensor rows = offsets.slice(0, 1);
  return groups.each == 1 ? rows : rows * groups.each;
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

Tensor linear_by_kernel(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                        std::string_view activation) {
  check_linear(x, weight, bias, offsets, activation);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight))) return linear_by_torch(x, weight, bias, offsets, activation);
  const Tensor at = offsets.contiguous(), w = weight.contiguous();
  const kernel::Groups rows = groups(x, at);
  const Tensor a = activated(flat(x), layers::activation_named(activation), weight.size(2));
  if (is_alone(w))
    return at::linear(a, w[0], bias && bias->defined() ? (*bias)[0] : Tensor())
        .view_symint(with_width(x, weight.sym_size(1)));
  const Tensor y = at::_grouped_mm(a, w.transpose(1, 2), ends(rows, at));
  if (bias && bias->defined()) {
    const Tensor b = bias->contiguous();
    C10_CUDA_CHECK(add_bias({.groups = rows,
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
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && grad.scalar_type() == x.scalar_type() && aligned(grad)))
    return linear_backward_by_torch(grad, x, weight, offsets, activation, needed);
  const Activation before = layers::activation_named(activation);
  const Tensor at = offsets.contiguous(), w = weight.contiguous(), g = flat(grad), h = flat(x);
  const kernel::Groups rows = groups(x, at);
  const Tensor last = ends(rows, at);
  Tensor d_x = at::empty({0}, x.options()), d_weight = d_x, d_bias = d_x;
  Tensor a = before == Activation::none ? h : Tensor();
  if (needed[0]) {
    d_x = is_alone(w) ? at::matmul(g, w[0]) : at::_grouped_mm(g, w, last);
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
    d_x = d_x.view(x.sizes());
  }
  if (needed[1]) {
    if (!a.defined()) a = activated(h, before, weight.size(2));
    d_weight = is_alone(w) ? at::matmul(g.t(), a).unsqueeze(0) : at::_grouped_mm(g.t(), a, last);
    // A product over no rows is zero; the kernel does not promise it.
    if (!is_alone(w)) C10_CUDA_CHECK(zero_idle({.groups = rows,
                              .row_bytes = d_weight.size(1) * d_weight.size(2) * 2,
                              .x = d_weight.mutable_data_ptr()},
                             stream()));
  }
  if (needed[2]) {
    d_bias = at::empty({weight.size(0), weight.size(1)}, x.options());
    const Tensor partial =
        at::empty({rows.pieces(kernel::column_sums_piece), weight.size(1)}, x.options().dtype(at::kFloat));
    C10_CUDA_CHECK(column_sums({.groups = rows,
                                .x = g.const_data_ptr(),
                                .width = g.size(1),
                                .type = kernel::Type::bfloat16,
                                .partial = partial.mutable_data_ptr<float>(),
                                .sums = d_bias.mutable_data_ptr()},
                               stream()));
  }
  return {d_x, d_weight, d_bias};
}

// -------------------------------------------------------------------------------------- the hidden layer in inference

void check_swiglu(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_linear(x, weight, std::nullopt, offsets, "none");
  TORCH_CHECK(weight.sym_size(1) % 2 == 0, "moecod::grouped_swiglu: weight must be [E, 2 n, in], got ",
              weight.sym_sizes());
}

Tensor swiglu_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  return layers::activate(call<operators::GroupedLinear>(x, weight, std::nullopt, offsets, "none"), Activation::swiglu);
}

/// Widest input for which the activation goes into the product's epilogue. Above, the hidden layer costs little beside
/// the product, for which at::_grouped_mm is faster (docs/performance.md).
constexpr int64_t widest_fused = 1024;

Tensor swiglu_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && weight.size(1) % 16 == 0)) return swiglu_by_torch(x, weight, offsets);
  const int64_t hidden = weight.size(1) / 2;
  // A linear layer is a convolution of images of one position.
  const kernel::ConvShape shape{.height = 1,
                                .width = 1,
                                .in = static_cast<int>(weight.size(2)),
                                .out = static_cast<int>(weight.size(1))};
  if (weight.size(2) > widest_fused || !conv_takes(shape)) {
    const Tensor h = linear_by_kernel(x, weight, std::nullopt, offsets, "none");
    return activated(flat(h), Activation::swiglu, hidden).view_symint(with_width(x, hidden));
  }
  Tensor at = offsets.contiguous();
  const kernel::Groups rows = groups(x, at);
  if (rows.each > 1) at = at * rows.each;
  const Tensor in = flat(x), w = weight.contiguous(), a = at::empty({in.size(0), hidden}, x.options());
  C10_CUDA_CHECK(conv({.groups = {.offsets = at.const_data_ptr<int32_t>(), .experts = rows.experts, .rows = in.size(0)},
                       .shape = shape,
                       .gated = true,
                       .x = in.const_data_ptr(),
                       .weight = w.const_data_ptr(),
                       .y = a.mutable_data_ptr()},
                      stream()));
  return a.view_symint(with_width(x, hidden));
}

Tensor swiglu_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  check_swiglu(x, weight, offsets);
  return at::empty_symint(with_width(x, weight.sym_size(1) / 2), x.options());
}

Tensor swiglu_with_autocast(const Tensor& x, const Tensor& weight, const Tensor& offsets) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<operators::GroupedSwiGlu>(at::autocast::cached_cast(type, x, at::kCUDA),
                                        at::autocast::cached_cast(type, weight, at::kCUDA), offsets);
}

// ------------------------------------------------------------------------------------------------ shapes and autograd

Tensor linear_shapes(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                     std::string_view activation) {
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
                        const Tensor& offsets, std::string_view activation) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets});
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["bias"] = bias && bias->defined();
    return call<operators::GroupedLinear>(x, weight, bias, offsets, activation);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    // needs_input_grad counts the tensors that were given.
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                        ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)};
    const auto [d_x, d_weight, d_bias] = call<GroupedLinearBackward>(grads[0], saved[0], saved[1], saved[2],
                                                                     std::string_view(activation), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), needed[2] ? d_bias : Tensor(), {}, {}};
  }
};

Tensor linear_with_autograd(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                            std::string_view activation) {
  return GroupedLinearFunction::apply(x, weight, bias, offsets, activation);
}

Tensor linear_with_autocast(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& offsets,
                            std::string_view activation) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<operators::GroupedLinear>(
      at::autocast::cached_cast(type, x, at::kCUDA), at::autocast::cached_cast(type, weight, at::kCUDA),
      bias && bias->defined() ? optional(at::autocast::cached_cast(type, *bias, at::kCUDA)) : std::nullopt, offsets,
      activation);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def("grouped_swiglu(Tensor x, Tensor weight, Tensor offsets) -> Tensor");
  m.def("grouped_linear(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, str activation) -> Tensor");
  m.def(
      "grouped_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, str activation, bool[3] needed) -> "
      "(Tensor d_x, Tensor d_weight, Tensor d_bias)");
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_swiglu", &swiglu_by_kernel);
  m.impl("grouped_linear", &linear_by_kernel);
  m.impl("grouped_linear_backward", &linear_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_swiglu", &swiglu_by_torch);
  m.impl("grouped_linear", &linear_by_torch);
  m.impl("grouped_linear_backward", &linear_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_swiglu", &swiglu_shapes);
  m.impl("grouped_linear", &linear_shapes);
  m.impl("grouped_linear_backward", &linear_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_linear", &linear_with_autograd);
  m.impl("grouped_linear_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_swiglu", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) {
  m.impl("grouped_linear", &linear_with_autocast);
  m.impl("grouped_swiglu", &swiglu_with_autocast);
}

}  // namespace moecod::cuda
