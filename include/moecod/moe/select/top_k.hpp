#pragma once
#include <ATen/ops/sort.h>

#include <type_traits>

#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/select/gate.hpp"

namespace moecod::select {

/// Each row goes to the K experts of the highest score.
///
///     chosen = the K largest of scores + selection bias, ties to the lower index
///
/// The selection bias moves the choice only, never the weights.
///
/// Shapes: logits [N, E], bias [E] or undefined -> Routing with S = K, assignments N*K. Gradients flow through the
/// weights. Synchronises: never. Errors: c10::Error if E < K; K = 1 with a gate that renormalises is a compile error,
/// since its only weight is always 1 and the router would get no gradient.
template <int64_t K, class Gate = std::conditional_t<(K > 1), gate::TopKSoftmax, gate::SoftmaxTopK>>
struct TopK {
  static_assert(K >= 1, "moecod: select::TopK<K> needs K >= 1");
  static_assert(K > 1 || !Gate::renormalises,
                "moecod: select::TopK<1> with a gate that renormalises gives every weight 1, so the router would get no "
                "gradient; use gate::SoftmaxTopK");
  using policy_kind = kind::select;
  using gate = Gate;
  static constexpr int64_t per_row = K;
  static int64_t assignments(int64_t rows, int64_t) { return rows * K; }

  static Routing select(const at::Tensor& logits, const at::Tensor& selection_bias, bool /*training*/) {
    TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= K, "select::TopK<", K, ">: logits must be [N, E] with E >= ", K,
                ", got ", logits.sizes());
    Routing routing;
    routing.scores = Gate::scores(logits);
    const at::Tensor score = routing.scores.detach();
    const at::Tensor by = selection_bias.defined() ? score + selection_bias : score;
    // A stable sort keeps equal scores in the order of their index; topk does not promise that.
    const at::Tensor chosen =
        std::get<1>(at::sort(by, /*stable=*/true, /*dim=*/1, /*descending=*/true)).slice(1, 0, K).contiguous();
    routing.experts = chosen.to(at::kInt);
    routing.weights = Gate::weights(routing.scores.gather(1, chosen), logits.gather(1, chosen));
    routing.counts = count_assignments(routing.experts, logits.size(1));
    routing.assignments = assignments(logits.size(0), logits.size(1));
    return routing;
  }
};

}  // namespace moecod::select
