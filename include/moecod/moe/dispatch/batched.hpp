#pragma once
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::dispatch {

/// Each expert runs once, on all of its rows together.
///
/// Synchronises: once a forward, to read how many rows each expert has. Memory: one copy of the rows.
struct Batched {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = false;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    return execute(experts, x, routing, [](auto& run_expert, const auto& rows) { return run_expert(rows); });
  }
};

}  // namespace moecod::dispatch
