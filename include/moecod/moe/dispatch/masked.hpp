#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/zeros.h>

#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::dispatch {

/// Every expert on every row, the outputs weighted with the gate (zero where an expert was not chosen).
///
///     y = sum over experts e of w_e * expert_e(x), added in the order of the experts
///
/// The cost is that of all experts; what it buys is routing by position over spatial experts, whose outputs
/// [B, C, H, W] are weighted by w_e as a map [B, 1, H, W], and a dense reference. Batch statistics are over all rows.
/// Synchronises: never.
struct Masked {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = true;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    const int64_t images = tree::rows(x);
    const at::Tensor gate = routing.dense_weights();
    const at::Tensor all = at::arange(images, routing.counts.options());
    auto parts = experts.visit(x, [&](int64_t e, const auto& input, auto&& run_expert) {
      using Output = std::remove_cvref_t<decltype(run_expert(input))>;
      return experts::Part<Output>{all, gate.select(1, e), run_expert(input)};
    });
    at::Tensor y;
    detail::for_each_part(parts, [&](auto& part) {
      const at::Tensor& out = tree::primary(part.output);
      const auto wide = at::promote_types(out.scalar_type(), at::kFloat);
      const at::Tensor term = out.to(wide) * weights_like(part.weights(), out).to(wide);
      y = y.defined() ? y + term : term;
    });
    y = y.to(tree::primary(detail::first_part(parts).output).scalar_type());
    auto joined = Experts::join(parts);
    return Executed<decltype(joined)>{y, std::move(joined)};
  }

 private:
  /// w [N] in a shape that multiplies `out`: one weight a row, or one a position of each image.
  static at::Tensor weights_like(const at::Tensor& w, const at::Tensor& out) {
    if (w.size(0) == out.size(0)) return moecod::detail::as_rows(w, out);
    TORCH_CHECK(out.dim() == 4 && w.size(0) == out.size(0) * out.size(2) * out.size(3),
                "dispatch::Masked: ", w.size(0), " routed positions do not fit an expert's output of shape ",
                out.sizes(), "; routing by position needs experts that keep height and width");
    return w.view({out.size(0), 1, out.size(2), out.size(3)});
  }
};

}  // namespace moecod::dispatch
