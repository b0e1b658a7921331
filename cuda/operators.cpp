// The operators of routing, torch.ops.moecod.*: schemas, CUDA kernels, shapes, LibTorch's operations elsewhere,
// autograd.
//
// The kernels take float32 (select), int32 (plan), and rows of float32, bfloat16 or float16 (combine; gather copies any
// type). What they do not take runs LibTorch's operations, as on the CPU, and is counted. Nothing synchronises.
#include <ATen/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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
#include "moecod/moe/combine.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace moecod::cuda {
namespace {

using at::Tensor;
using c10::SymInt;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

int64_t fallbacks() { return fallback_count.load(); }

optional<Tensor> contiguous(const optional<Tensor>& t) {
  return t && t->defined() ? optional(t->contiguous()) : std::nullopt;
}

template <class T>
const T* pointer(const optional<Tensor>& t) {
  return t ? t->const_data_ptr<T>() : nullptr;
}

bool has_type(const optional<Tensor>& t, at::ScalarType type) { return !t || !t->defined() || t->scalar_type() == type; }

// ---------------------------------------------------------------------------------------------------------- select

using Selected = std::tuple<Tensor, Tensor, Tensor, Tensor>;

kernel::Gate gate_named(std::string_view name) {
  if (name == gate::SoftmaxTopK::fused) return kernel::Gate::softmax_top_k;
  if (name == gate::TopKSoftmax::fused) return kernel::Gate::top_k_softmax;
  if (name == gate::Sigmoid::fused) return kernel::Gate::sigmoid;
  TORCH_CHECK(false, "moecod::select: gate must be softmax_top_k, top_k_softmax or sigmoid, got ", name);
}

void check_select(const Tensor& logits, const optional<Tensor>& logit_bias, const optional<Tensor>& selection_bias,
                  int64_t k) {
  TORCH_CHECK(logits.dim() == 2, "moecod::select: logits must be [N, E], got ", logits.sym_sizes());
  TORCH_CHECK(k >= 1 && logits.sym_size(1) >= k, "moecod::select: k must lie in [1, E], got ", k, " for logits ",
              logits.sym_sizes());
  for (const auto& bias : {logit_bias, selection_bias})
    TORCH_CHECK(!bias || !bias->defined() || (bias->dim() == 1 && bias->sym_size(0) == logits.sym_size(1)),
                "moecod::select: a bias must be [E] = [", logits.sym_size(1), "]");
}

Selected select_by_torch(const Tensor& logits, const optional<Tensor>& logit_bias,
                         const optional<Tensor>& selection_bias, int64_t k, std::string_view gate) {
  check_select(logits, logit_bias, selection_bias, k);
  const Tensor biased = logit_bias && logit_bias->defined() ? logits + *logit_bias : logits;
  const Tensor by = selection_bias.value_or(Tensor());
  Routing r;
  switch (gate_named(gate)) {
    case kernel::Gate::softmax_top_k: r = select::detail::top_k<gate::SoftmaxTopK>(biased, by, k); break;
    case kernel::Gate::top_k_softmax: r = select::detail::top_k<gate::TopKSoftmax>(biased, by, k); break;
    case kernel::Gate::sigmoid: r = select::detail::top_k<gate::Sigmoid>(biased, by, k); break;
  }
  return {r.scores, r.experts, r.weights, r.counts};
}

Selected select_by_kernel(const Tensor& logits, const optional<Tensor>& logit_bias,
                          const optional<Tensor>& selection_bias, int64_t k, std::string_view gate) {
  check_select(logits, logit_bias, selection_bias, k);
  const bool takes = logits.scalar_type() == at::kFloat && has_type(logit_bias, at::kFloat) &&
                     has_type(selection_bias, at::kFloat) && logits.size(1) <= kernel::max_experts &&
                     k <= kernel::max_per_row;
  if (!kernel_takes(takes)) return select_by_torch(logits, logit_bias, selection_bias, k, gate);
  const c10::cuda::CUDAGuard device(logits.device());
  const Tensor x = logits.contiguous();
  const auto first = contiguous(logit_bias), second = contiguous(selection_bias);
  const int64_t rows = x.size(0), experts = x.size(1);
  const Tensor scores = at::empty_like(x);
  const Tensor chosen = at::empty({rows, k}, x.options().dtype(at::kInt));
  const Tensor weights = at::empty({rows, k}, x.options());
  const Tensor counts = at::empty({experts}, x.options().dtype(at::kLong));
  C10_CUDA_CHECK(select_forward({.logits = x.const_data_ptr<float>(),
                                 .logit_bias = pointer<float>(first),
                                 .selection_bias = pointer<float>(second),
                                 .rows = rows,
                                 .experts = static_cast<int>(experts),
                                 .per_row = static_cast<int>(k),
                                 .gate = gate_named(gate),
                                 .scores = scores.mutable_data_ptr<float>(),
                                 .chosen = chosen.mutable_data_ptr<int32_t>(),
                                 .weights = weights.mutable_data_ptr<float>(),
                                 .counts = counts.mutable_data_ptr<int64_t>()},
                                stream()));
  return {scores, chosen, weights, counts};
}

Selected select_shapes(const Tensor& logits, const optional<Tensor>& logit_bias,
                       const optional<Tensor>& selection_bias, int64_t k, std::string_view gate) {
  check_select(logits, logit_bias, selection_bias, k);
  gate_named(gate);
  const SymInt rows = logits.sym_size(0), experts = logits.sym_size(1);
  return {at::empty_symint({rows, experts}, logits.options()),
          at::empty_symint({rows, k}, logits.options().dtype(at::kInt)),
          at::empty_symint({rows, k}, logits.options()),
          at::empty_symint({experts}, logits.options().dtype(at::kLong))};
}

Tensor select_backward_by_torch(const optional<Tensor>& d_scores, const optional<Tensor>& d_weights,
                                const Tensor& scores, const Tensor& experts, const Tensor& weights,
                                std::string_view gate) {
  const kernel::Gate kind = gate_named(gate);
  const Tensor chosen = experts.to(at::kLong);
  const Tensor dw = d_weights && d_weights->defined() ? *d_weights : at::zeros_like(weights);
  Tensor ds = d_scores && d_scores->defined() ? *d_scores : at::zeros_like(scores);
  const Tensor product = (dw * weights).sum(1, /*keepdim=*/true);
  if (kind == kernel::Gate::sigmoid) {
    const Tensor total = scores.gather(1, chosen).sum(1, /*keepdim=*/true);
    ds = ds.scatter_add(1, chosen, (dw - product * total.ge(1e-20)) / total.clamp_min(1e-20));
    return ds * scores * (1 - scores);
  }
  if (kind == kernel::Gate::softmax_top_k) ds = ds.scatter_add(1, chosen, dw);
  const Tensor d_logits = scores * (ds - (ds * scores).sum(1, /*keepdim=*/true));
  return kind == kernel::Gate::softmax_top_k ? d_logits
                                             : d_logits.scatter_add(1, chosen, weights * (dw - product));
}

Tensor select_backward_by_kernel(const optional<Tensor>& d_scores, const optional<Tensor>& d_weights,
                                 const Tensor& scores, const Tensor& experts, const Tensor& weights,
                                 std::string_view gate) {
  const bool takes = scores.scalar_type() == at::kFloat && has_type(d_scores, at::kFloat) &&
                     has_type(d_weights, at::kFloat) && scores.size(1) <= kernel::max_experts &&
                     experts.size(1) <= kernel::max_per_row;
  if (!kernel_takes(takes)) return select_backward_by_torch(d_scores, d_weights, scores, experts, weights, gate);
  const c10::cuda::CUDAGuard device(scores.device());
  const auto ds = contiguous(d_scores), dw = contiguous(d_weights);
  const Tensor s = scores.contiguous(), e = experts.contiguous(), w = weights.contiguous();
  const Tensor d_logits = at::empty_like(s);
  C10_CUDA_CHECK(select_backward({.d_scores = pointer<float>(ds),
                                  .d_weights = pointer<float>(dw),
                                  .scores = s.const_data_ptr<float>(),
                                  .chosen = e.const_data_ptr<int32_t>(),
                                  .weights = w.const_data_ptr<float>(),
                                  .rows = s.size(0),
                                  .experts = static_cast<int>(s.size(1)),
                                  .per_row = static_cast<int>(e.size(1)),
                                  .gate = gate_named(gate),
                                  .d_logits = d_logits.mutable_data_ptr<float>()},
                                 stream()));
  return d_logits;
}

Tensor select_backward_shapes(const optional<Tensor>&, const optional<Tensor>&, const Tensor& scores, const Tensor&,
                              const Tensor&, std::string_view) {
  return at::empty_symint(scores.sym_sizes(), scores.options());
}

// ------------------------------------------------------------------------------------------------------------ plan

using Planned = std::tuple<Tensor, Tensor, Tensor>;

void check_plan(const Tensor& experts) {
  TORCH_CHECK(experts.dim() == 2 && experts.scalar_type() == at::kInt,
              "moecod::plan: experts must be [N, S] int32, got ", experts.sym_sizes(), " ", experts.scalar_type());
}

Planned plan_by_torch(const Tensor& experts, int64_t num_experts, int64_t assignments) {
  check_plan(experts);
  return moecod::detail::plan(experts, count_assignments(experts, num_experts), assignments);
}

Planned plan_by_kernel(const Tensor& experts, int64_t num_experts, int64_t assignments) {
  check_plan(experts);
  if (!kernel_takes(num_experts <= kernel::max_experts)) return plan_by_torch(experts, num_experts, assignments);
  const c10::cuda::CUDAGuard device(experts.device());
  const Tensor e = experts.contiguous();
  int64_t workspace_size = 0;
  C10_CUDA_CHECK(plan_workspace(e.numel(), static_cast<int>(num_experts), &workspace_size));
  const Tensor workspace = at::empty({workspace_size}, e.options());
  const Tensor order = at::empty({assignments}, e.options());
  const Tensor offsets = at::empty({num_experts + 1}, e.options());
  const Tensor position = at::empty_like(e);
  C10_CUDA_CHECK(plan({.experts = e.const_data_ptr<int32_t>(),
                       .items = e.numel(),
                       .num_experts = static_cast<int>(num_experts),
                       .assignments = assignments,
                       .workspace = workspace.mutable_data_ptr<int32_t>(),
                       .order = order.mutable_data_ptr<int32_t>(),
                       .offsets = offsets.mutable_data_ptr<int32_t>(),
                       .position = position.mutable_data_ptr<int32_t>()},
                      stream()));
  return {order, offsets, position};
}

Planned plan_shapes(const Tensor& experts, int64_t num_experts, SymInt assignments) {
  check_plan(experts);
  return {at::empty_symint({assignments}, experts.options()), at::empty({num_experts + 1}, experts.options()),
          at::empty_symint(experts.sym_sizes(), experts.options())};
}

// ---------------------------------------------------------------------------------------------- gather and combine

constexpr int64_t longest_row = std::numeric_limits<int32_t>::max();

/// Elements a row.
int64_t width(const Tensor& rows) {
  int64_t product = 1;
  for (int64_t d = 1; d < rows.dim(); ++d) product *= rows.size(d);
  return product;
}

void check_rows(const char* name, const Tensor& x, const Tensor& position) {
  TORCH_CHECK(x.dim() >= 1, name, ": rows must have a leading dimension");
  TORCH_CHECK(position.dim() == 2 && position.scalar_type() == at::kInt, name, ": position must be [N, S] int32, got ",
              position.sym_sizes(), " ", position.scalar_type());
}

/// `count` rows like those of x, in its memory format.
Tensor rows_like(const Tensor& x, const SymInt& count) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes[0] = count;
  return at::empty_symint(sizes, x.options(), x.suggest_memory_format());
}

Tensor rows_of(const Tensor& order, const Tensor& position) {
  return order.to(at::kLong).floor_divide(position.size(1));
}

Tensor gather_by_torch(const Tensor& x, const Tensor& order, const Tensor& position, int64_t) {
  check_rows("moecod::gather", x, position);
  return at::index_select(x, 0, rows_of(order, position));
}

Tensor gather_by_kernel(const Tensor& x, const Tensor& order, const Tensor& position, int64_t first) {
  check_rows("moecod::gather", x, position);
  TORCH_CHECK(x.size(0) == position.size(0), "moecod::gather: x has ", x.size(0), " rows, position ", position.size(0));
  const int64_t row = width(x);
  if (!kernel_takes(row <= longest_row)) return gather_by_torch(x, order, position, first);
  const c10::cuda::CUDAGuard device(x.device());
  const Tensor in = x.contiguous(x.suggest_memory_format()), at = position.contiguous();
  const Tensor out = rows_like(in, order.size(0));
  C10_CUDA_CHECK(gather({.x = in.const_data_ptr(),
                         .position = at.const_data_ptr<int32_t>(),
                         .rows = at.size(0),
                         .slots = static_cast<int>(at.size(1)),
                         .row_bytes = row * static_cast<int64_t>(in.element_size()),
                         .first = first,
                         .count = out.size(0),
                         .out = out.mutable_data_ptr()},
                        stream()));
  return out;
}

Tensor gather_shapes(const Tensor& x, const Tensor& order, const Tensor& position, SymInt) {
  check_rows("moecod::gather", x, position);
  return rows_like(x, order.sym_size(0));
}

Tensor gather_backward_by_torch(const Tensor& grad, const Tensor& order, const Tensor& position, int64_t) {
  auto sizes = grad.sizes().vec();
  sizes[0] = position.size(0);
  return moecod::detail::gather_backward(grad, rows_of(order, position), sizes);
}

Tensor gather_backward_by_kernel(const Tensor& grad, const Tensor& order, const Tensor& position, int64_t first) {
  const auto type = kernel_type(grad);
  const int64_t row = width(grad);
  if (!kernel_takes(type && row <= longest_row)) return gather_backward_by_torch(grad, order, position, first);
  const c10::cuda::CUDAGuard device(grad.device());
  const Tensor in = grad.contiguous(grad.suggest_memory_format()), at = position.contiguous();
  const Tensor out = rows_like(in, position.size(0));
  C10_CUDA_CHECK(combine_forward({.sorted = in.const_data_ptr(),
                                  .position = at.const_data_ptr<int32_t>(),
                                  .rows = at.size(0),
                                  .slots = static_cast<int>(at.size(1)),
                                  .width = row,
                                  .type = *type,
                                  .first = first,
                                  .count = in.size(0),
                                  .y = out.mutable_data_ptr()},
                                 stream()));
  return out;
}

Tensor gather_backward_shapes(const Tensor& grad, const Tensor&, const Tensor& position, SymInt) {
  return rows_like(grad, position.sym_size(0));
}

void check_combine(const Tensor& sorted, const Tensor& weights, const Tensor& position) {
  check_rows("moecod::combine", sorted, position);
  TORCH_CHECK(weights.sym_sizes() == position.sym_sizes(),
              "moecod::combine: weights and position must both be [N, S], got ", weights.sym_sizes(), " and ",
              position.sym_sizes());
}

bool combine_takes(const Tensor& rows, const Tensor& weights) {
  return kernel_type(rows) && weights.scalar_type() == at::kFloat && width(rows) <= longest_row;
}

Tensor combine_by_torch(const Tensor& sorted, const Tensor& weights, const Tensor&, const Tensor& position) {
  check_combine(sorted, weights, position);
  return moecod::detail::combine_forward(sorted, weights, position);
}

Tensor combine_by_kernel(const Tensor& sorted, const Tensor& weights, const Tensor& order, const Tensor& position) {
  check_combine(sorted, weights, position);
  if (!kernel_takes(combine_takes(sorted, weights))) return combine_by_torch(sorted, weights, order, position);
  const c10::cuda::CUDAGuard device(sorted.device());
  const Tensor in = sorted.contiguous(sorted.suggest_memory_format()), at = position.contiguous();
  const Tensor w = weights.contiguous(), y = rows_like(in, position.size(0));
  C10_CUDA_CHECK(combine_forward({.sorted = in.const_data_ptr(),
                                  .weights = w.const_data_ptr<float>(),
                                  .position = at.const_data_ptr<int32_t>(),
                                  .rows = at.size(0),
                                  .slots = static_cast<int>(at.size(1)),
                                  .width = width(in),
                                  .type = *kernel_type(in),
                                  .count = in.size(0),
                                  .y = y.mutable_data_ptr()},
                                 stream()));
  return y;
}

Tensor combine_shapes(const Tensor& sorted, const Tensor& weights, const Tensor&, const Tensor& position) {
  check_combine(sorted, weights, position);
  return rows_like(sorted, position.sym_size(0));
}

/// A result that was not asked for is empty.
using Needed = std::array<bool, 2>;  // d_sorted, d_weights

std::tuple<Tensor, Tensor> combine_backward_by_torch(const Tensor& grad, const Tensor& sorted, const Tensor& weights,
                                                     const Tensor& order, const Tensor& position, Needed needed) {
  auto [d_sorted, d_weights] =
      moecod::detail::combine_backward(grad, sorted, weights, order, position, needed[0], needed[1]);
  return {needed[0] ? d_sorted : at::empty({0}, sorted.options()),
          needed[1] ? d_weights : at::empty({0}, weights.options())};
}

std::tuple<Tensor, Tensor> combine_backward_by_kernel(const Tensor& grad, const Tensor& sorted, const Tensor& weights,
                                                      const Tensor& order, const Tensor& position, Needed needed) {
  const bool takes = combine_takes(sorted, weights) && grad.scalar_type() == sorted.scalar_type();
  if (!kernel_takes(takes)) return combine_backward_by_torch(grad, sorted, weights, order, position, needed);
  const c10::cuda::CUDAGuard device(sorted.device());
  const auto format = sorted.suggest_memory_format();
  const Tensor in = sorted.contiguous(format), g = grad.contiguous(format);
  const Tensor w = weights.contiguous(), at = position.contiguous();
  const Tensor d_sorted = needed[0] ? at::empty_like(in) : at::empty({0}, in.options());
  const Tensor d_weights = needed[1] ? at::empty_like(w) : at::empty({0}, w.options());
  kernel::CombineBackward arguments{.grad = g.const_data_ptr(),
                                    .sorted = in.const_data_ptr(),
                                    .weights = w.const_data_ptr<float>(),
                                    .position = at.const_data_ptr<int32_t>(),
                                    .rows = at.size(0),
                                    .slots = static_cast<int>(at.size(1)),
                                    .width = width(in),
                                    .type = *kernel_type(in),
                                    .d_sorted = needed[0] ? d_sorted.mutable_data_ptr() : nullptr,
                                    .d_weights = needed[1] ? d_weights.mutable_data_ptr<float>() : nullptr};
  Tensor partial;
  if (const int splits = combine_backward_splits(arguments); needed[1] && splits > 1) {
    partial = at::empty({w.numel(), splits}, w.options());
    arguments.partial = partial.mutable_data_ptr<float>();
  }
  C10_CUDA_CHECK(combine_backward(arguments, stream()));
  return {d_sorted, d_weights};
}

std::tuple<Tensor, Tensor> combine_backward_shapes(const Tensor&, const Tensor& sorted, const Tensor& weights,
                                                   const Tensor&, const Tensor&, Needed needed) {
  return {needed[0] ? rows_like(sorted, sorted.sym_size(0)) : at::empty({0}, sorted.options()),
          needed[1] ? at::empty_symint(weights.sym_sizes(), weights.options()) : at::empty({0}, weights.options())};
}

// -------------------------------------------------------------------------------------------------------- autograd

struct SelectBackward {
  static constexpr const char* name = "moecod::select_backward";
  using signature = Tensor(const optional<Tensor>&, const optional<Tensor>&, const Tensor&, const Tensor&, const Tensor&,
                           std::string_view);
};

struct CombineBackward {
  static constexpr const char* name = "moecod::combine_backward";
  using signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                               const Tensor&, Needed);
};

struct SelectFunction : Function<SelectFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const optional<Tensor>& logit_bias,
                               const optional<Tensor>& selection_bias, int64_t k, std::string_view gate) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [scores, experts, weights, counts] =
        call<operators::Select>(logits, logit_bias, selection_bias, k, gate);
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable({experts, counts});
    ctx->save_for_backward({scores, experts, weights});
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["biased"] = logit_bias && logit_bias->defined();
    return {scores, experts, weights, counts};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined() && !grads[2].defined()) return {{}, {}, {}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const std::string gate = ctx->saved_data["gate"].toStringRef();
    const Tensor d_logits = call<SelectBackward>(if_defined(grads[0]), if_defined(grads[2]), saved[0], saved[1],
                                                 saved[2], std::string_view(gate));
    // needs_input_grad counts the tensors that were given.
    const bool bias_learns = ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(1);
    return {d_logits, bias_learns ? d_logits.sum(0) : Tensor(), {}, {}, {}};
  }
};

Selected select_with_autograd(const Tensor& logits, const optional<Tensor>& logit_bias,
                              const optional<Tensor>& selection_bias, int64_t k, std::string_view gate) {
  const auto out = SelectFunction::apply(logits, logit_bias, selection_bias, k, gate);
  return {out[0], out[1], out[2], out[3]};
}

struct GatherFunction : Function<GatherFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& order, const Tensor& position,
                        SymInt first) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({order, position});
    ctx->saved_data["first"] = first;
    return call<operators::Gather>(x, order, position, first);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {call<GatherBackward>(grads[0], saved[0], saved[1], ctx->saved_data["first"].toSymInt()), {}, {}, {}};
  }
};

Tensor gather_with_autograd(const Tensor& x, const Tensor& order, const Tensor& position, SymInt first) {
  return GatherFunction::apply(x, order, position, first);
}

struct CombineFunction : Function<CombineFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& sorted, const Tensor& weights, const Tensor& order,
                        const Tensor& position) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({sorted, weights, order, position});
    return call<operators::Combine>(sorted, weights, order, position);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [d_sorted, d_weights] =
        call<CombineBackward>(grads[0], saved[0], saved[1], saved[2], saved[3], needed);
    return {needed[0] ? d_sorted : Tensor(), needed[1] ? d_weights : Tensor(), {}, {}};
  }
};

Tensor combine_with_autograd(const Tensor& sorted, const Tensor& weights, const Tensor& order, const Tensor& position) {
  return CombineFunction::apply(sorted, weights, order, position);
}

}  // namespace

TORCH_LIBRARY(moecod, m) {
  m.def(
      "select(Tensor logits, Tensor? logit_bias, Tensor? selection_bias, int k, str gate) -> "
      "(Tensor scores, Tensor experts, Tensor weights, Tensor counts)");
  m.def(
      "select_backward(Tensor? d_scores, Tensor? d_weights, Tensor scores, Tensor experts, Tensor weights, str gate) -> "
      "Tensor");
  m.def("plan(Tensor experts, int num_experts, SymInt assignments) -> (Tensor order, Tensor offsets, Tensor position)");
  m.def("gather(Tensor x, Tensor order, Tensor position, SymInt first) -> Tensor");
  m.def("gather_backward(Tensor grad, Tensor order, Tensor position, SymInt first) -> Tensor");
  m.def("combine(Tensor sorted, Tensor weights, Tensor order, Tensor position) -> Tensor");
  m.def(
      "combine_backward(Tensor grad, Tensor sorted, Tensor weights, Tensor order, Tensor position, bool[2] needed) -> "
      "(Tensor d_sorted, Tensor d_weights)");
  m.def("fallbacks() -> int", &fallbacks);
}

TORCH_LIBRARY_IMPL(moecod, CUDA, m) {
  m.impl("select", &select_by_kernel);
  m.impl("select_backward", &select_backward_by_kernel);
  m.impl("plan", &plan_by_kernel);
  m.impl("gather", &gather_by_kernel);
  m.impl("gather_backward", &gather_backward_by_kernel);
  m.impl("combine", &combine_by_kernel);
  m.impl("combine_backward", &combine_backward_by_kernel);
}

TORCH_LIBRARY_IMPL(moecod, CPU, m) {
  m.impl("select", &select_by_torch);
  m.impl("select_backward", &select_backward_by_torch);
  m.impl("plan", &plan_by_torch);
  m.impl("gather", &gather_by_torch);
  m.impl("gather_backward", &gather_backward_by_torch);
  m.impl("combine", &combine_by_torch);
  m.impl("combine_backward", &combine_backward_by_torch);
}

TORCH_LIBRARY_IMPL(moecod, Meta, m) {
  m.impl("select", &select_shapes);
  m.impl("select_backward", &select_backward_shapes);
  m.impl("plan", &plan_shapes);
  m.impl("gather", &gather_shapes);
  m.impl("gather_backward", &gather_backward_shapes);
  m.impl("combine", &combine_shapes);
  m.impl("combine_backward", &combine_backward_shapes);
}

TORCH_LIBRARY_IMPL(moecod, Autograd, m) {
  m.impl("select", &select_with_autograd);
  m.impl("gather", &gather_with_autograd);
  m.impl("combine", &combine_with_autograd);
  // No second derivatives: an error, where LibTorch would only warn.
  m.impl("select_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gather_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("combine_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("plan", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moecod::cuda
