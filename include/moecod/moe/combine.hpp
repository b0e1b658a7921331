#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>
#include <vector>

#include "moecod/core/operators.hpp"
#include "moecod/core/tree.hpp"
#include "moecod/moe/routing.hpp"

/// Gather and combine, each other's backward, without atomics whose order could show.
namespace moecod {

namespace detail {

/// w [n] as [n, 1, ...], to be multiplied with rows like those of x.
inline at::Tensor as_rows(const at::Tensor& w, const at::Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[0] = w.size(0);
  return w.reshape(shape);
}

/// [N, ...] of the sorted rows' gradients, added at the rows they came from; without atomics.
inline at::Tensor gather_backward(const at::Tensor& grad, const at::Tensor& rows, at::IntArrayRef sizes) {
  at::Tensor out = at::zeros(sizes, grad.options());
  // On CUDA index_add_ uses atomics, while an accumulating index_put_ sorts the indices first; on the CPU both
  // add in order, and index_add_ does so a row at a time.
  return out.is_cpu() ? out.index_add_(0, rows, grad) : out.index_put_({rows}, grad, /*accumulate=*/true);
}

struct GatherFunction : torch::autograd::Function<GatherFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rows) {
    ctx->save_for_backward({rows});
    ctx->saved_data["sizes"] = x.sizes().vec();
    return at::index_select(x, 0, rows);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    return {gather_backward(grads[0], ctx->get_saved_variables()[0], sizes), {}};
  }
};

/// Row n is the output for slot s of row n, or zeros where the slot is unused (not 0 * whatever is there).
inline at::Tensor slot(const at::Tensor& sorted, const at::Tensor& position, int64_t s) {
  const at::Tensor at = position.select(1, s).to(at::kLong);
  return at::where(as_rows(at.ge(0), sorted), at::index_select(sorted, 0, at.clamp_min(0)),
                   at::zeros({}, sorted.options()));
}

inline at::Tensor combine_forward(const at::Tensor& sorted, const at::Tensor& weights, const at::Tensor& position) {
  const auto wide = at::promote_types(sorted.scalar_type(), at::kFloat);
  at::Tensor y;
  for (int64_t s = 0; s < position.size(1); ++s) {
    const at::Tensor term = slot(sorted, position, s).to(wide) * as_rows(weights.select(1, s), sorted).to(wide);
    y = y.defined() ? y.add_(term) : term;
  }
  return y.to(sorted.scalar_type());
}

/// d_sorted and d_weights, each only where it is needed.
inline std::tuple<at::Tensor, at::Tensor> combine_backward(const at::Tensor& grad, const at::Tensor& sorted,
                                                           const at::Tensor& weights, const at::Tensor& order,
                                                           const at::Tensor& position, bool needs_sorted,
                                                           bool needs_weights) {
  at::Tensor d_sorted, d_weights;
  if (needs_sorted) {
    const at::Tensor slots = order.to(at::kLong);
    const at::Tensor w = as_rows(at::index_select(weights.reshape({-1}), 0, slots), sorted);
    d_sorted = at::index_select(grad, 0, slots.floor_divide(position.size(1))).mul(w.to(grad.scalar_type()));
  }
  if (needs_weights) {
    const auto wide = at::promote_types(grad.scalar_type(), at::kFloat);
    d_weights = at::zeros_like(weights);
    for (int64_t s = 0; s < position.size(1); ++s)
      d_weights.select(1, s).copy_((slot(sorted, position, s).to(wide) * grad.to(wide)).flatten(1).sum(1));
  }
  return {d_sorted, d_weights};
}

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& sorted, const at::Tensor& weights,
                            const at::Tensor& order, const at::Tensor& position) {
    ctx->save_for_backward({sorted, weights, order, position});
    return combine_forward(sorted, weights, position);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    auto [d_sorted, d_weights] = combine_backward(grads[0], saved[0], saved[1], saved[2], saved[3],
                                                  ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    return {d_sorted, d_weights, {}, {}};
  }
};

}  // namespace detail

/// The rows listed, from every leaf of a tree. rows [m] int64; leaves [N, ...] -> [m, ...]. Does not synchronise.
template <tree::any T>
T gather(const T& x, const at::Tensor& rows) {
  return tree::map([&](const at::Tensor& leaf) { return detail::GatherFunction::apply(leaf, rows); }, x);
}

/// The rows of the sorted assignments [begin, end), from every leaf of a tree: leaves [N, ...] -> [end - begin, ...].
/// By the operator where it is there; then the backward adds a row's gradients in the order of its slots, in float32.
/// Does not synchronise.
template <tree::any T>
T gather(const T& x, const Plan& plan, int64_t begin, int64_t end) {
  const at::Tensor order = plan.order.slice(0, begin, end);
  at::Tensor rows;
  return tree::map(
      [&](const at::Tensor& leaf) {
        if (const auto* gather = operators::find_for<operators::Gather>(leaf))
          return gather->call(leaf, order, plan.position, begin);
        if (!rows.defined()) rows = order.to(at::kLong).floor_divide(plan.slots);
        return detail::GatherFunction::apply(leaf, rows);
      },
      x);
}

/// The rows of all sorted assignments.
template <tree::any T>
T gather(const T& x, const Plan& plan) {
  return gather(x, plan, 0, plan.assignments());
}

/// y[n] = sum over slots s of weights[n, s] * sorted[position[n, s]], added in the order of the slots, in float32 or
/// wider. sorted [M, ...] -> y [N, ...] of the same dtype. Does not synchronise.
inline at::Tensor combine(const at::Tensor& sorted, const at::Tensor& weights, const Plan& plan) {
  if (const auto* combine = operators::find_for<operators::Combine>(sorted))
    return combine->call(sorted, weights, plan.order, plan.position);
  return detail::CombineFunction::apply(sorted, weights, plan.order, plan.position);
}

}  // namespace moecod
