#pragma once
#include <ATen/ops/zeros_like.h>

#include "moecod/moe/experts/run.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"

namespace moecod::bench {

/// The expert batching of the feature-level design that the camouflage recipe comes from, for comparison only.
///
/// Written the way that design works: for each expert a boolean mask of its rows, one batch through the expert, then
/// row by row the gate weight is read back to the host with item() and the weighted output is added in place. It
/// synchronises once an expert and twice an assignment, and the gate weights get no gradient.
struct SeedBatching {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = false;

  struct Executed {
    at::Tensor y;
  };

  template <class Experts, class X>
  static Executed run(Experts& experts, const X& x, const Routing& routing) {
    at::Tensor y = at::zeros_like(x);
    experts.visit(x, [&](int64_t e, const auto& input, auto&& run_expert) {
      using Output = std::remove_cvref_t<decltype(run_expert(input))>;
      experts::Part<Output> part;
      const at::Tensor chosen = routing.experts.eq(e);
      const at::Tensor mask = chosen.any(1);
      if (!mask.any().template item<bool>()) return part;
      const at::Tensor rows = mask.nonzero().flatten();
      part.output = run_expert(input.index({mask}));
      for (int64_t i = 0; i < rows.size(0); ++i) {
        const int64_t n = rows[i].template item<int64_t>();
        const double weight = (routing.weights[n] * chosen[n]).sum().template item<double>();
        y[n] += part.output[i] * weight;
      }
      return part;
    });
    return {y};
  }
};

}  // namespace moecod::bench
