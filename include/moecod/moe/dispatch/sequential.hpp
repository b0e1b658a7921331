#pragma once
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::dispatch {

/// Row by row: the reference that every other dispatcher is compared with.
///
/// An expert with batch statistics sees one row at a time in training, so there it differs from the others by design.
/// Synchronises: once a forward.
struct Sequential {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = false;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    TORCH_CHECK(!experts.run_idle, "dispatch::Sequential runs an expert once a row, and so not equally often on all ranks: "
                "synchronised batch statistics need another dispatcher");
    return execute(experts, x, routing, [](auto& run_expert, const auto& rows) {
      std::vector<std::remove_cvref_t<decltype(run_expert(rows))>> out;
      for (int64_t i = 0, n = tree::rows(rows); i < n; ++i)
        out.push_back(run_expert(tree::map([&](const at::Tensor& leaf) { return leaf.slice(0, i, i + 1); }, rows)));
      return tree::cat(out);
    });
  }
};

}  // namespace moecod::dispatch
