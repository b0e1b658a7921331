#pragma once
#include <ATen/ops/sort.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "moecod/core/operators.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/select/gate.hpp"

namespace moecod::select {

namespace detail {

/// TopK of a K known at run time, of LibTorch's operations; without the checks.
template <class Gate>
Routing top_k(const at::Tensor& logits, const at::Tensor& selection_bias, int64_t k) {
  Routing routing;
  routing.scores = Gate::scores(logits);
  const at::Tensor score = routing.scores.detach();
  const at::Tensor by = selection_bias.defined() ? score + selection_bias : score;
  // A stable sort keeps equal scores in the order of their index; topk does not promise that.
  const at::Tensor chosen =
      std::get<1>(at::sort(by, /*stable=*/true, /*dim=*/1, /*descending=*/true)).slice(1, 0, k).contiguous();
  routing.experts = chosen.to(at::kInt);
  routing.weights = Gate::weights(routing.scores.gather(1, chosen), logits.gather(1, chosen));
  routing.counts = count_assignments(routing.experts, logits.size(1));
  return routing;
}

}  // namespace detail

/// Each row goes to the K experts of the highest score.
///
///     chosen = the K largest of scores + selection bias, ties to the lower index
///
/// The selection bias moves the choice only, never the weights.
///
/// One kernel where the operators of `moecod::cuda` are there. Shapes: logits [N, E], bias [E] or undefined -> Routing
/// with S = K, assignments N*K. Gradients flow through the weights and scores. Synchronises: never. Errors: c10::Error if
/// E < K; K = 1 with a gate that renormalises is a compile error, since its only weight is always 1 and the router would get
/// no gradient.
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

  /// logit_bias [E] or undefined is added to the logits first; the mixture gives it to selections that take it.
  static Routing select(const at::Tensor& logits, const at::Tensor& selection_bias, bool /*training*/,
                        const at::Tensor& logit_bias = {}) {
    TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= K, "select::TopK<", K, ">: logits must be [N, E] with E >= ", K,
                ", got ", logits.sizes());
    Routing routing;
    if (!fused(routing, logits, selection_bias, logit_bias))
      routing = detail::top_k<Gate>(logit_bias.defined() ? logits + logit_bias : logits, selection_bias, K);
    routing.assignments = assignments(logits.size(0), logits.size(1));
    return routing;
  }

 private:
  /// By the operator, where it is there and knows the gate.
  static bool fused(Routing& routing, const at::Tensor& logits, const at::Tensor& selection_bias,
                    const at::Tensor& logit_bias) {
    if constexpr (requires { Gate::fused; }) {
      if (const auto* select = operators::find_for<operators::Select>(logits)) {
        const auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
        std::tie(routing.scores, routing.experts, routing.weights, routing.counts) =
            select->call(logits, optional(logit_bias), optional(selection_bias), K, Gate::fused);
        return true;
      }
    }
    return false;
  }
};

}  // namespace moecod::select
