#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

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

struct GatherFunction : torch::autograd::Function<GatherFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rows) {
    ctx->save_for_backward({rows});
    ctx->saved_data["sizes"] = x.sizes().vec();
    return at::index_select(x, 0, rows);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor rows = ctx->get_saved_variables()[0];
    at::Tensor out = at::zeros(ctx->saved_data["sizes"].toIntVector(), grads[0].options());
    // On CUDA index_add_ uses atomics, while an accumulating index_put_ sorts the indices first; on the CPU both
    // add in order, and index_add_ does so a row at a time.
    if (out.is_cpu()) {
      out.index_add_(0, rows, grads[0]);
    } else {
      out.index_put_({rows}, grads[0], /*accumulate=*/true);
    }
    return {out, {}};
  }
};

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& sorted, const at::Tensor& weights,
                            const at::Tensor& order, const at::Tensor& position) {
    ctx->save_for_backward({sorted, weights, order, position});
    const auto wide = at::promote_types(sorted.scalar_type(), at::kFloat);
    at::Tensor y;
    for (int64_t s = 0; s < position.size(1); ++s) {
      const at::Tensor term = slot(sorted, position, s).to(wide) * as_rows(weights.select(1, s), sorted).to(wide);
      y = y.defined() ? y.add_(term) : term;
    }
    return y.to(sorted.scalar_type());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &sorted = saved[0], &weights = saved[1], &order = saved[2], &position = saved[3];
    const at::Tensor& g = grads[0];
    const at::Tensor slots = order.to(at::kLong);
    at::Tensor d_sorted, d_weights;
    if (ctx->needs_input_grad(0)) {
      const at::Tensor w = as_rows(at::index_select(weights.reshape({-1}), 0, slots), sorted);
      d_sorted = at::index_select(g, 0, slots.floor_divide(position.size(1))).mul(w.to(g.scalar_type()));
    }
    if (ctx->needs_input_grad(1)) {
      const auto wide = at::promote_types(g.scalar_type(), at::kFloat);
      d_weights = at::zeros_like(weights);
      for (int64_t s = 0; s < position.size(1); ++s)
        d_weights.select(1, s).copy_((slot(sorted, position, s).to(wide) * g.to(wide)).flatten(1).sum(1));
    }
    return {d_sorted, d_weights, {}, {}};
  }

 private:
  /// Row n is the output for slot s of row n, or zeros where the slot is unused (not 0 * whatever is there).
  static at::Tensor slot(const at::Tensor& sorted, const at::Tensor& position, int64_t s) {
    const at::Tensor at = position.select(1, s).to(at::kLong);
    return at::where(as_rows(at.ge(0), sorted), at::index_select(sorted, 0, at.clamp_min(0)),
                     at::zeros({}, sorted.options()));
  }
};

}  // namespace detail

/// The rows listed, from every leaf of a tree. rows [m] int64; leaves [N, ...] -> [m, ...]. Does not synchronise.
template <tree::any T>
T gather(const T& x, const at::Tensor& rows) {
  return tree::map([&](const at::Tensor& leaf) { return detail::GatherFunction::apply(leaf, rows); }, x);
}

/// y[n] = sum over slots s of weights[n, s] * sorted[position[n, s]], added in the order of the slots, in float32 or
/// wider. sorted [M, ...] -> y [N, ...] of the same dtype. Does not synchronise.
inline at::Tensor combine(const at::Tensor& sorted, const at::Tensor& weights, const Plan& plan) {
  return detail::CombineFunction::apply(sorted, weights, plan.order, plan.position);
}

}  // namespace moecod
