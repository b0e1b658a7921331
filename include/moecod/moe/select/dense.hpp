#pragma once
#include <ATen/ops/arange.h>

#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/select/gate.hpp"

namespace moecod::select {

/// Every row goes to every expert, with the gate's weights over all of them.
///
/// Shapes: logits [N, E] -> Routing with S = E, assignments N*E; slot s is expert s. A selection bias has nothing to
/// choose and is ignored. Synchronises: never.
template <class Gate = gate::TopKSoftmax>
struct Dense {
  using policy_kind = kind::select;
  using gate = Gate;
  static int64_t assignments(int64_t rows, int64_t experts) { return rows * experts; }

  static Routing select(const at::Tensor& logits, const at::Tensor& /*selection_bias*/, bool /*training*/) {
    TORCH_CHECK(logits.dim() == 2, "select::Dense: logits must be [N, E], got ", logits.sizes());
    Routing routing;
    routing.scores = Gate::scores(logits);
    routing.experts = at::arange(logits.size(1), logits.options().dtype(at::kInt)).expand_as(logits).contiguous();
    routing.weights = Gate::weights(routing.scores, logits);
    routing.counts = count_assignments(routing.experts, logits.size(1));
    routing.assignments = assignments(logits.size(0), logits.size(1));
    return routing;
  }
};

}  // namespace moecod::select
