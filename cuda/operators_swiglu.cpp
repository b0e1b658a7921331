// Feed-forward experts with a gate, y = W2 (silu(g) u), [g, u] = W1 x, each row by its expert's weights. The operators
// torch.ops.moecod.grouped_swiglu, the hidden layer where no gradient is wanted; grouped_swiglu_kept, where one is; and
// grouped_swiglu_combine, the second layer and the combination of its rows, whose backward pass needs neither those rows nor
// their gradients: <d_y, W2 a> = <W2^T d_y, a>, so the weights' gradient comes from where the gate's does.
//
// Kernels and what they take: as operators_linear.cpp.
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <string>

#include "cuda/grouped_rows.hpp"
#include "moecod/moe/routing.hpp"

namespace moecod::cuda {
namespace {

using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Needed = std::array<bool, 3>;  // of the gradients; what was not asked for is empty

// --------------------------------------------------------------------------------------------------- the hidden layer

using Kept = std::tuple<Tensor, Tensor>;  // h, swiglu(h)

void check_swiglu(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                  const optional<Tensor>& position) {
  TORCH_CHECK(weight.dim() == 3 && weight.sym_size(1) % 2 == 0, "moecod::grouped_swiglu: weight must be [E, 2 n, in], got ",
              weight.sym_sizes());
  TORCH_CHECK(x.dim() >= 2 && x.sym_size(-1) == weight.sym_size(2), "moecod::grouped_swiglu: x must be [M, ..., ",
              weight.sym_size(2), "], got ", x.sym_sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "moecod::grouped_swiglu: x and weight must have one type, got ",
              x.scalar_type(), " and ", weight.scalar_type());
  check_offsets("moecod::grouped_swiglu", offsets, weight.sym_size(0));
  TORCH_CHECK(order.has_value() == position.has_value(), "moecod::grouped_swiglu: order and position come together, got ",
              order ? "order" : "position", " alone");
  TORCH_CHECK(!order || (x.dim() == 2 && order->dim() == 1 && order->scalar_type() == at::kInt && position->dim() == 2 &&
                         position->scalar_type() == at::kInt && position->sym_size(0) == x.sym_size(0) &&
                         order->sym_size(0) <= position->sym_numel()),
              "moecod::grouped_swiglu: with order, x must be [N, in], order [M] int32 and position [N, S] int32, got ",
              x.sym_sizes(), ", ", order->sym_sizes(), " ", order->scalar_type(), " and ", position->sym_sizes(), " ",
              position->scalar_type());
  check_devices("moecod::grouped_swiglu", "x", x, {{"weight", weight}, {"offsets", offsets}, {"order", order}, {"position", position}});
}

/// The rows of x as `order` sorts them, if it is given.
Tensor sorted(const Tensor& x, const optional<Tensor>& order, const optional<Tensor>& position) {
  return order ? call<operators::Gather>(x, *order, *position, c10::SymInt(0)) : x;
}

/// The sizes of such rows, but of another width.
c10::SymDimVector sizes_of_rows(const Tensor& x, const optional<Tensor>& order, const c10::SymInt& width) {
  c10::SymDimVector sizes = with_width(x, width);
  if (order) sizes[0] = order->sym_size(0);
  return sizes;
}

Kept swiglu_kept_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                          const optional<Tensor>& position) {
  check_swiglu(x, weight, offsets, order, position);
  const Tensor h = call<operators::GroupedLinear>(sorted(x, order, position), weight, std::nullopt, offsets, "none", std::nullopt);
  return {h, layers::activate(h, Activation::swiglu)};
}

Tensor swiglu_by_torch(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                       const optional<Tensor>& position) {
  return std::get<1>(swiglu_kept_by_torch(x, weight, offsets, order, position));
}

/// Whether kernels sort rows as they load them from x, which they address by 32 bits.
bool sorts_in_kernel(const Tensor& x, const Tensor& weight) {
  return by_conv(weight) && x.numel() / 8 <= std::numeric_limits<int32_t>::max();
}

/// With `keeps` both, else a alone.
Kept hidden_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                      const optional<Tensor>& position, bool keeps) {
  check_swiglu(x, weight, offsets, order, position);
  const c10::cuda::CUDAGuard device(x.device());
  if (!kernel_takes(takes(x, weight) && weight.size(1) % 16 == 0))
    return swiglu_kept_by_torch(x, weight, offsets, order, position);
  const Tensor w = readable(weight);
  if (order && !sorts_in_kernel(x, w))
    return hidden_by_kernel(sorted(x, order, position), weight, offsets, std::nullopt, std::nullopt, keeps);
  const Unsorted unsorted = order ? Unsorted::by(*order, *position) : Unsorted{};
  const Tensor in = flat(x);
  Rows rows = rows_of(x, offsets);
  if (order) rows.groups.rows = order->size(0);
  const auto shaped = [&](const Tensor& items) { return items.view_symint(sizes_of_rows(x, order, items.size(1))); };
  Tensor h, a;
  if (by_conv(w)) {
    a = at::empty({rows.groups.rows, w.size(1) / 2}, x.options());
    if (keeps) h = at::empty({rows.groups.rows, w.size(1)}, x.options());
    C10_CUDA_CHECK(conv({.groups = rows.groups,
                         .shape = linear_shape(w),
                         .gated = true,
                         .x = in.const_data_ptr(),
                         .weight = w.const_data_ptr(),
                         .y = a.mutable_data_ptr(),
                         .h = keeps ? h.mutable_data_ptr() : nullptr,
                         .order = unsorted.data(),
                         .slots = unsorted.slots},
                        stream()));
  } else {
    h = product(in, w, rows, /*transposed=*/false);
    a = activated(h, Activation::swiglu, w.size(1) / 2);
  }
  return {keeps ? shaped(h) : Tensor(), shaped(a)};
}

Kept swiglu_kept_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                           const optional<Tensor>& position) {
  return hidden_by_kernel(x, weight, offsets, order, position, /*keeps=*/true);
}

Tensor swiglu_by_kernel(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                        const optional<Tensor>& position) {
  return std::get<1>(hidden_by_kernel(x, weight, offsets, order, position, /*keeps=*/false));
}

Tensor swiglu_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                     const optional<Tensor>& position) {
  check_swiglu(x, weight, offsets, order, position);
  return at::empty_symint(sizes_of_rows(x, order, weight.sym_size(1) / 2), x.options());
}

Kept swiglu_kept_shapes(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                        const optional<Tensor>& position) {
  const Tensor a = swiglu_shapes(x, weight, offsets, order, position);
  return {at::empty_symint(with_width(a, weight.sym_size(1)), x.options()), a};
}

template <class Operator>
auto swiglu_with_autocast(const Tensor& x, const Tensor& weight, const Tensor& offsets, const optional<Tensor>& order,
                          const optional<Tensor>& position) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  return call<Operator>(at::autocast::cached_cast(type, x, at::kCUDA),
                        at::autocast::cached_cast(type, weight, at::kCUDA), offsets, order, position);
}

void check_swiglu_backward(const Tensor& d_h, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                           const optional<Tensor>& order, const optional<Tensor>& position) {
  check_swiglu(x, weight, offsets, order, position);
  check_like("moecod::grouped_swiglu_backward", "d_h", d_h, sizes_of_rows(x, order, weight.sym_size(1)), x);
}

using NeededOfHidden = std::array<bool, 2>;  // d_x, d_weight
using OfHidden = std::tuple<Tensor, Tensor>;

/// The gradients of x and weight from that of h, as a linear layer of sorted rows has them.
OfHidden swiglu_backward_by_linear(const Tensor& d_h, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                   const optional<Tensor>& order, const optional<Tensor>& position,
                                   NeededOfHidden needed) {
  check_swiglu_backward(d_h, x, weight, offsets, order, position);
  // Without the weights' gradient of x nothing but its shape is needed.
  const Tensor rows = order && !needed[1] ? at::empty({order->size(0), x.size(1)}, x.options()) : sorted(x, order, position);
  auto [d_x, d_weight, d_bias] =
      call<GroupedLinearBackward>(d_h, rows, weight, offsets, std::string_view("none"), Needed{needed[0], needed[1], false});
  if (needed[0] && order) d_x = call<GatherBackward>(d_x, *order, *position, c10::SymInt(0));
  return {d_x, d_weight};
}

/// Where the rows of x are sorted by the kernel that loads them, here too.
OfHidden swiglu_backward_by_kernel(const Tensor& d_h, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                   const optional<Tensor>& order, const optional<Tensor>& position,
                                   NeededOfHidden needed) {
  check_swiglu_backward(d_h, x, weight, offsets, order, position);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor w = readable(weight);
  if (!order || !takes(x, weight) || !sorts_in_kernel(x, w))
    return swiglu_backward_by_linear(d_h, x, weight, offsets, order, position, needed);
  const Tensor g = flat(d_h);
  const Rows rows = rows_of(g, offsets);
  const Unsorted unsorted = Unsorted::by(*order, *position);
  Tensor d_x = at::empty({0}, x.options()), d_weight = at::empty({0}, w.options());
  if (needed[0])
    d_x = call<GatherBackward>(product(g, w, rows, /*transposed=*/true), *order, *position, c10::SymInt(0));
  if (needed[1]) d_weight = weight_gradient_by_conv(g, flat(x), w, rows, kernel::ConvWeight::Gathers::x, unsorted);
  return {d_x, d_weight};
}

OfHidden swiglu_backward_shapes(const Tensor& d_h, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                                const optional<Tensor>& order, const optional<Tensor>& position, NeededOfHidden needed) {
  check_swiglu_backward(d_h, x, weight, offsets, order, position);
  return {needed[0] ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options()),
          needed[1] ? at::empty_symint(weight.sym_sizes(), weight.options()) : at::empty({0}, weight.options())};
}

struct SwiGluBackward {
  static constexpr const char* name = "moecod::grouped_swiglu_backward";
  using signature = OfHidden(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
                             const optional<Tensor>&, NeededOfHidden);
};

/// Keeps x alone; swiglu(h) has no gradient of its own, since the layer that takes it gives that of h.
struct GroupedSwiGluFunction : Function<GroupedSwiGluFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                               const optional<Tensor>& order, const optional<Tensor>& position) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight, offsets, order.value_or(Tensor()), position.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    const auto [h, a] = call<operators::GroupedSwiGluKept>(x, weight, offsets, order, position);
    ctx->mark_non_differentiable({a});
    return {h, a};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const NeededOfHidden needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [d_x, d_weight] = call<SwiGluBackward>(grads[0], saved[0], saved[1], saved[2], if_defined(saved[3]),
                                                      if_defined(saved[4]), needed);
    return {needed[0] ? d_x : Tensor(), needed[1] ? d_weight : Tensor(), {}, {}, {}};
  }
};

Kept swiglu_kept_with_autograd(const Tensor& x, const Tensor& weight, const Tensor& offsets,
                               const optional<Tensor>& order, const optional<Tensor>& position) {
  const variable_list out = GroupedSwiGluFunction::apply(x, weight, offsets, order, position);
  return {out[0], out[1]};
}

// ------------------------------------------------------------------------------- the second layer and the combination

using Both = std::tuple<Tensor, Tensor>;  // y, and the rows that it combines
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

/// `name`: of the operator or of its backward pass, which both take these.
void check_swiglu_combine(const char* name, const Tensor& h, const Tensor& weight, const Tensor& offsets, const Tensor& weights,
                          const Tensor& order, const Tensor& position) {
  TORCH_CHECK(h.dim() == 2 && weight.dim() == 3 && h.sym_size(1) == 2 * weight.sym_size(2), name,
              ": h must be [M, 2 n] and weight [E, out, n], got ", h.sym_sizes(), " and ", weight.sym_sizes());
  TORCH_CHECK(h.scalar_type() == weight.scalar_type(), name, ": h and weight must have one type, got ", h.scalar_type(), " and ",
              weight.scalar_type());
  TORCH_CHECK(weights.dim() == 2 && weights.scalar_type() == at::kFloat && position.sym_sizes() == weights.sym_sizes() &&
                  position.scalar_type() == at::kInt,
              name, ": weights must be [N, S] float32 and position [N, S] int32, got ", weights.sym_sizes(), " ",
              weights.scalar_type(), " and ", position.sym_sizes(), " ", position.scalar_type());
  TORCH_CHECK(order.dim() == 1 && order.sym_size(0) == h.sym_size(0) && order.sym_numel() <= weights.sym_numel() &&
                  order.scalar_type() == at::kInt,
              name, ": order must be [M] = [", h.sym_size(0), "] int32, of at most N S slots, got ", order.sym_sizes(), " ", order.scalar_type());
  check_offsets(name, offsets, weight.sym_size(0));
  check_devices(name, "h", h,
                {{"weight", weight}, {"offsets", offsets}, {"weights", weights}, {"order", order}, {"position", position}});
}

Both swiglu_combine(const Tensor& h, const Tensor& a, const Tensor& weight, const Tensor& offsets, const Tensor& weights,
             const Tensor& order, const Tensor& position) {
  constexpr const char* name = "moecod::grouped_swiglu_combine";
  check_swiglu_combine(name, h, weight, offsets, weights, order, position);
  check_like(name, "a", a, c10::SymDimVector{h.sym_size(0), weight.sym_size(2)}, h);
  const Tensor rows = call<operators::GroupedLinear>(h, weight, std::nullopt, offsets, "swiglu", std::optional(a));
  return {call<operators::Combine>(rows, weights, order, position), rows};
}

void check_swiglu_combine_backward(const Tensor& d_y, const Tensor& h, const Tensor& weight, const Tensor& offsets,
                                   const Tensor& weights, const Tensor& order, const Tensor& position) {
  constexpr const char* name = "moecod::grouped_swiglu_combine_backward";
  check_swiglu_combine(name, h, weight, offsets, weights, order, position);
  check_like(name, "d_y", d_y, c10::SymDimVector{weights.sym_size(0), weight.sym_size(1)}, h);
}

/// The gradient of the slots' weights from what the rows make of d_y.
Tensor weights_gradient(const Tensor& d_a, const Tensor& a, const Tensor& weights, const Tensor& order) {
  const Tensor out = at::zeros_like(weights, at::MemoryFormat::Contiguous);
  out.view({-1}).index_copy_(0, order.to(at::kLong), (d_a.to(at::kFloat) * a.to(at::kFloat)).sum(1));
  return out;
}

/// d_h, d_weight, d_weights.
Gradients swiglu_combine_backward_by_torch(const Tensor& d_y, const Tensor& h, const Tensor& weight, const Tensor& offsets,
                                    const Tensor& weights, const Tensor& order, const Tensor& position, Needed needed) {
  check_swiglu_combine_backward(d_y, h, weight, offsets, weights, order, position);
  const Tensor grad = sorted(d_y, order, position);
  const Tensor a = layers::activate(h, Activation::swiglu), d_a = at::empty_like(a);
  const Tensor w = Plan::weights_of(order, weights).unsqueeze(1).to(h.scalar_type());
  const Tensor d_weight = needed[1] ? at::zeros_like(weight, at::MemoryFormat::Contiguous) : at::empty({0}, weight.options());
  each_expert(h, offsets, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor rows = grad.slice(0, begin, end);
    d_a.slice(0, begin, end).copy_(rows.matmul(weight[e]));
    if (needed[1]) d_weight[e].copy_(rows.t().matmul((a * w).slice(0, begin, end)));
  });
  return {needed[0] ? activation_backward(d_a * w, h, Activation::swiglu) : at::empty({0}, h.options()), d_weight,
          needed[2] ? weights_gradient(d_a, a, weights, order) : at::empty({0}, weights.options())};
}

/// The same in the gate's own kernel, or by a dense or grouped product and passes over what it gives.
Gradients swiglu_combine_backward_by_kernel(const Tensor& d_y, const Tensor& h, const Tensor& weight, const Tensor& offsets,
                                     const Tensor& weights, const Tensor& order, const Tensor& position,
                                     Needed needed) {
  check_swiglu_combine_backward(d_y, h, weight, offsets, weights, order, position);
  const c10::cuda::CUDAGuard device(h.device());
  if (!kernel_takes(takes(h, weight)))
    return swiglu_combine_backward_by_torch(d_y, h, weight, offsets, weights, order, position, needed);
  const Tensor w = readable(weight), before = flat(h);
  const Rows rows = rows_of(h, offsets);
  Tensor d_h, a, d_weights, d_weight = at::empty({0}, w.options());
  if (sorts_in_kernel(d_y, w)) {
    const Tensor grad = flat(d_y);
    const Unsorted unsorted = Unsorted::by(order, position);
    std::tie(d_h, a, d_weights) = gate_backward(grad, before, w, rows, {weights.contiguous(), unsorted, needed[2]});
    if (needed[1])
      d_weight = weight_gradient_by_conv(grad, a, w, rows, kernel::ConvWeight::Gathers::grad, unsorted);
  } else {
    const Tensor grad = readable(sorted(d_y, order, position));
    const Tensor d_a = product(grad, w, rows, /*transposed=*/true);
    std::tie(d_h, a) = through_activation(d_a, before, Activation::swiglu, /*wants_a=*/true);
    if (needed[2]) d_weights = weights_gradient(d_a, a, weights, order);
    const Tensor of_rows = Plan::weights_of(order, weights).unsqueeze(1).to(h.scalar_type());
    d_h.mul_(of_rows);
    a.mul_(of_rows);
    if (needed[1]) d_weight = weight_gradient(grad, a, w, rows);
  }
  return {needed[0] ? d_h : at::empty({0}, h.options()), d_weight,
          needed[2] ? d_weights : at::empty({0}, weights.options())};
}

Gradients swiglu_combine_backward_shapes(const Tensor& d_y, const Tensor& h, const Tensor& weight, const Tensor& offsets,
                                  const Tensor& weights, const Tensor& order, const Tensor& position, Needed needed) {
  check_swiglu_combine_backward(d_y, h, weight, offsets, weights, order, position);
  const auto like = [](const Tensor& t, bool is_needed) {
    return is_needed ? at::empty_symint(t.sym_sizes(), t.options()) : at::empty({0}, t.options());
  };
  return {like(h, needed[0]), like(weight, needed[1]), like(weights, needed[2])};
}

struct SwiGluCombineBackward {
  static constexpr const char* name = "moecod::grouped_swiglu_combine_backward";
  using signature = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&, Needed);
};

/// Keeps h alone.
struct SwiGluCombineFunction : Function<SwiGluCombineFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& a, const Tensor& weight,
                               const Tensor& offsets, const Tensor& weights, const Tensor& order,
                               const Tensor& position) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({h, weight, offsets, weights, order, position});
    ctx->set_materialize_grads(false);
    const auto [y, rows] = call<operators::GroupedSwiGluCombine>(h, a, weight, offsets, weights, order, position);
    return {y, rows};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    Tensor d_h, d_weight, d_weights;
    const auto add = [](Tensor& sum, const Tensor& term, bool needed) {
      if (needed) sum = sum.defined() ? sum + term : term;
    };
    const bool for_h = ctx->needs_input_grad(0), for_weight = ctx->needs_input_grad(2);
    if (grads[0].defined()) {
      const Needed needed{for_h, for_weight, ctx->needs_input_grad(4)};
      const auto [h, weight, weights] =
          call<SwiGluCombineBackward>(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], needed);
      add(d_h, h, needed[0]);
      add(d_weight, weight, needed[1]);
      add(d_weights, weights, needed[2]);
    }
    if (grads[1].defined()) {  // somebody looks at the rows themselves
      const auto [h, weight, bias] = call<GroupedLinearBackward>(
          grads[1], saved[0], saved[1], saved[2], std::string_view("swiglu"), Needed{for_h, for_weight, false});
      add(d_h, h, for_h);
      add(d_weight, weight, for_weight);
    }
    return {d_h, {}, d_weight, {}, d_weights, {}, {}};
  }
};

Both swiglu_combine_with_autograd(const Tensor& h, const Tensor& a, const Tensor& weight, const Tensor& offsets,
                           const Tensor& weights, const Tensor& order, const Tensor& position) {
  TORCH_CHECK(!a.requires_grad(), "moecod::grouped_swiglu_combine: a must be swiglu(h), without a gradient of its own");
  const variable_list out = SwiGluCombineFunction::apply(h, a, weight, offsets, weights, order, position);
  return {out[0], out[1]};
}

Both swiglu_combine_with_autocast(const Tensor& h, const Tensor& a, const Tensor& weight, const Tensor& offsets,
                           const Tensor& weights, const Tensor& order, const Tensor& position) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const auto type = at::autocast::get_autocast_dtype(at::kCUDA);
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(type, t, at::kCUDA); };
  return call<operators::GroupedSwiGluCombine>(cast(h), cast(a), cast(weight), offsets, weights, order, position);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moecod, m) {
  m.def("grouped_swiglu(Tensor x, Tensor weight, Tensor offsets, Tensor? order=None, Tensor? position=None) -> Tensor");
  m.def("grouped_swiglu_kept(Tensor x, Tensor weight, Tensor offsets, Tensor? order=None, Tensor? position=None) -> (Tensor h, Tensor a)");
  m.def(
      "grouped_swiglu_backward(Tensor d_h, Tensor x, Tensor weight, Tensor offsets, Tensor? order, Tensor? position, "
      "bool[2] needed) -> (Tensor d_x, Tensor d_weight)");
  m.def(
      "grouped_swiglu_combine(Tensor h, Tensor a, Tensor weight, Tensor offsets, Tensor weights, Tensor order, "
      "Tensor position) -> (Tensor y, Tensor rows)");
  m.def(
      "grouped_swiglu_combine_backward(Tensor d_y, Tensor h, Tensor weight, Tensor offsets, Tensor weights, Tensor order, "
      "Tensor position, bool[3] needed) -> (Tensor d_h, Tensor d_weight, Tensor d_weights)");
}

TORCH_LIBRARY_IMPL(moecod, CompositeExplicitAutograd, m) { m.impl("grouped_swiglu_combine", &swiglu_combine); }

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("grouped_swiglu", &swiglu_by_kernel);
  m.impl("grouped_swiglu_kept", &swiglu_kept_by_kernel);
  m.impl("grouped_swiglu_backward", &swiglu_backward_by_kernel);
  m.impl("grouped_swiglu_combine_backward", &swiglu_combine_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("grouped_swiglu", &swiglu_by_torch);
  m.impl("grouped_swiglu_kept", &swiglu_kept_by_torch);
  m.impl("grouped_swiglu_backward", &swiglu_backward_by_linear);
  m.impl("grouped_swiglu_combine_backward", &swiglu_combine_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("grouped_swiglu", &swiglu_shapes);
  m.impl("grouped_swiglu_kept", &swiglu_kept_shapes);
  m.impl("grouped_swiglu_backward", &swiglu_backward_shapes);
  m.impl("grouped_swiglu_combine_backward", &swiglu_combine_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("grouped_swiglu_kept", &swiglu_kept_with_autograd);
  m.impl("grouped_swiglu_combine", &swiglu_combine_with_autograd);
  m.impl("grouped_swiglu", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_swiglu_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_swiglu_combine_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(moecod, AutocastCUDA, m) {
  m.impl("grouped_swiglu", &swiglu_with_autocast<operators::GroupedSwiGlu>);
  m.impl("grouped_swiglu_kept", &swiglu_with_autocast<operators::GroupedSwiGluKept>);
  m.impl("grouped_swiglu_combine", &swiglu_combine_with_autocast);
}

}  // namespace moecod::cuda
