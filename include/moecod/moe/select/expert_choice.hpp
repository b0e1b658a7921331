#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace moecod::select {

/// Each expert takes the ceil(N*K/E) rows that score it highest; ties go to the lower row.
///
/// Load is equal by construction; a row may have from none to E experts, weighted with its scores. Which rows are
/// taken depends on the batch, which is wrong at test time, so evaluation uses the selection `Evaluate`, by default
/// with the same gate, so that outputs keep their scale.
///
/// Shapes: logits [N, E] -> Routing with S = E (slot s is expert s or unused). Synchronises: never.
/// Source: Zhou et al. 2022, arXiv 2202.09368.
template <int64_t K, class Evaluate = TopK<K, gate::SoftmaxTopK>, class Gate = gate::SoftmaxTopK>
struct ExpertChoice {
  static_assert(K >= 1, "moecod: select::ExpertChoice<K, Evaluate> needs K >= 1");
  using policy_kind = kind::select;
  using gate = Gate;
  using evaluate = Evaluate;
  static constexpr int64_t per_row = K;
  static int64_t capacity(int64_t rows, int64_t experts) {
    return std::min(rows, (rows * K + experts - 1) / experts);
  }
  static int64_t assignments(int64_t rows, int64_t experts) { return experts * capacity(rows, experts); }

  static Routing select(const at::Tensor& logits, const at::Tensor& selection_bias, bool training) {
    if (!training) return Evaluate::select(logits, selection_bias, training);
    TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= K, "select::ExpertChoice<", K,
                ">: logits must be [N, E] with E >= ", K, ", got ", logits.sizes());
    const int64_t rows = logits.size(0), experts = logits.size(1);
    Routing routing;
    routing.scores = Gate::scores(logits);
    const at::Tensor score = routing.scores.detach();
    const at::Tensor by = selection_bias.defined() ? score + selection_bias : score;
    const at::Tensor order = std::get<1>(at::sort(by, /*stable=*/true, /*dim=*/0, /*descending=*/true));
    const at::Tensor taken =
        at::zeros_like(by, at::kBool).scatter_(0, order.slice(0, 0, capacity(rows, experts)), true);
    const at::Tensor index = at::arange(experts, logits.options().dtype(at::kInt)).expand_as(taken);
    routing.experts = at::where(taken, index, at::full_like(index, -1));
    routing.weights = at::where(taken, routing.scores, at::zeros_like(routing.scores));
    routing.counts = count_assignments(routing.experts, experts);
    routing.assignments = assignments(rows, experts);
    return routing;
  }
};

}  // namespace moecod::select
