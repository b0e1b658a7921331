#pragma once
#include <ATen/ops/stack.h>

#include <vector>

#include "moecod/core/pyramid.hpp"
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/routing.hpp"

namespace moecod {

/// Every expert's answer to the same rows, beside the mixture's decision: what ensembles are compared with.
struct Answers {
  std::vector<at::Tensor> experts;  ///< the primary outputs, [B, ...] each
  Routing routing;                  ///< the mixture's own decision

  /// sum over experts of weights[:, e] * experts[e]; weights [B, E].
  at::Tensor weighted(const at::Tensor& weights) const {
    at::Tensor y;
    for (std::size_t e = 0; e < experts.size(); ++e) {
      const at::Tensor term = experts[e] * detail::as_rows(weights.select(1, int64_t(e)), experts[e]);
      y = y.defined() ? y + term : term;
    }
    return y;
  }

  /// What the mixture answers: the chosen experts with their gate weights.
  at::Tensor routed() const { return weighted(routing.dense_weights()); }

  /// The mean of all experts, weighted by the scores.
  at::Tensor gated() const { return weighted(routing.scores / routing.scores.sum(1, /*keepdim=*/true)); }

  /// The plain mean of the experts listed.
  at::Tensor mean(const std::vector<int64_t>& which) const {
    std::vector<at::Tensor> some;
    for (int64_t e : which) some.push_back(experts.at(std::size_t(e)));
    return at::stack(some).mean(0);
  }
};

/// Runs every expert of a model on every image, without gradients. The model keeps its mode; give it in eval mode.
template <class Model>
Answers ask_all(Model& model, const at::Tensor& images) {
  const at::NoGradGuard no_grad;
  const Scene scene = model.look(images);
  Answers out;
  out.routing = model.mixture->route(scene);
  auto all = model.mixture->run(scene, Routing::all(images.size(0), Model::num_experts, images.device()));
  dispatch::detail::for_each_part(all.parts, [&](auto& part) { out.experts.push_back(tree::primary(part.output)); });
  return out;
}

}  // namespace moecod
