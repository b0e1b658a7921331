#pragma once
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::dispatch {

/// All experts together, layer by layer, on rows sorted by expert; needs stacked storage.
///
/// Each stacked layer gets the sorted rows with the offsets of the experts; or experts sort, run and combine at once. x may be
/// kept for the backward pass: it is not to be changed in place before that has run.
/// Synchronises: never with the operators of
/// moecod::cuda on shapes and types that they have kernels for; else the E + 1 offsets are read
/// back, once a forward pass for all layers without an operator, and in each pass of an operator without a kernel.
struct Grouped {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = true;
  static constexpr bool position_weights = false;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    const Plan plan(routing);
    typename Experts::template parts<X> part;
    part.rows = Later([order = plan.order, slots = plan.slots] { return Plan::rows_of(order, slots); });
    part.weights = Later([order = plan.order, weights = routing.weights] { return Plan::weights_of(order, weights); });
    decltype(auto) in = experts.input(x);
    if constexpr (requires { experts.run_dispatched(in, plan, routing.weights); })
      if (const auto both = experts.run_dispatched(in, plan, routing.weights)) {
        part.output = both->second;
        return Executed<decltype(part)>{both->first, std::move(part)};
      }
    part.output = experts.run_sorted(gather(in, plan), plan.offsets);
    const at::Tensor y = combine(tree::primary(part.output), routing.weights, plan);
    return Executed<decltype(part)>{y, std::move(part)};
  }
};

}  // namespace moecod::dispatch
