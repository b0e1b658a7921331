#pragma once
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <limits>
#include <vector>

#include "moecod/core/tree.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/train/stage.hpp"

namespace moecod::train {

/// The experts' losses on a batch, [N, E] each and zero where an expert did not see the picture. `own` is what each
/// expert says of itself, on its own scale; `answer` is the structure loss of its final map, which compares experts;
/// `seen` is 0 or 1.
struct OwnLosses {
  at::Tensor own, answer, seen;
};

/// Asks each expert for its loss on the pictures it saw, expert.loss(output, target, progress) -> [m], and takes the
/// structure loss of its final map. target [N, 1, H, W] in [0, 1]; progress in [0, 1]. Synchronises: never.
template <class Experts, class Parts>
OwnLosses own_losses(Experts& experts, Parts& parts, const at::Tensor& target, double progress) {
  std::vector<at::Tensor> own, answer, seen;
  const at::Tensor nothing = at::zeros({target.size(0)}, target.options().dtype(at::kFloat));
  const at::Tensor weight = loss::structure_weight(target);
  experts.for_each(parts, [&](int64_t, auto& expert, auto& part) {
    own.push_back(nothing);
    answer.push_back(nothing);
    seen.push_back(nothing.clone());
    if (part.empty()) return;
    const at::Tensor mine = target.index_select(0, part.rows());
    auto output = part.output;
    const at::Tensor judged = loss::structure(tree::primary(output), mine, weight.index_select(0, part.rows()),
                                              loss::StructureForm::weighted_bce);
    own.back() = nothing.index_copy(0, part.rows(), expert.loss(part.output, mine, progress).to(at::kFloat));
    answer.back() = nothing.index_copy(0, part.rows(), judged.to(at::kFloat));
    seen.back().index_fill_(0, part.rows(), 1);
  });
  return {at::stack(own, 1), at::stack(answer, 1), at::stack(seen, 1)};
}

/// How well each expert does on a picture, compared with the others and with itself. Keeps the running means.
///
/// Buffers: mean [E], spread [] float32, changed in place; saved with the trainer's state. Synchronises: never.
class Responsibility : public torch::nn::Module {
 public:
  explicit Responsibility(int64_t experts) {
    mean_ = register_buffer("mean", at::zeros({experts}));
    spread_ = register_buffer("spread", at::zeros({}));
    seen_ = register_buffer("seen", at::zeros({experts}));
  }

  /// Moves the running values by a batch: an exponential average of decay 0.95, unbiased at the start.
  void observe(const OwnLosses& losses) {
    torch::NoGradGuard no_grad;
    const at::Tensor count = losses.seen.sum(0);
    const at::Tensor here = (losses.answer.detach() * losses.seen).sum(0) / count.clamp_min(1);
    const at::Tensor any = count.gt(0).to(at::kFloat);
    // A batch that is not finite is skipped by the optimizer, and must leave nothing here either.
    const at::Tensor finite = losses.answer.isfinite().all();
    seen_.copy_(at::where(finite, seen_ * (1 - 0.05 * any) + 0.05 * any, seen_));
    mean_.copy_(at::where(finite, mean_ + any * 0.05 / seen_.clamp_min(1e-6) * (here - mean_), mean_));
    const at::Tensor centred = centre(losses, 0.5);
    const at::Tensor deviation =
        ((centred.square() * losses.seen).sum() / losses.seen.sum().clamp_min(1)).sqrt();
    const at::Tensor moved = at::where(spread_.gt(0), spread_ * 0.95 + deviation * 0.05, deviation);
    spread_.copy_(at::where(finite, moved, spread_));
  }

  /// softmax over the experts that saw a picture of -(centred loss) / (spread * temperature): [N, E], rows sum to 1.
  at::Tensor operator()(const OwnLosses& losses, const Objective& objective) const {
    torch::NoGradGuard no_grad;
    const at::Tensor d = centre(losses, objective.handicap) / (spread_.clamp_min(1e-6) * objective.temperature);
    const at::Tensor minus_infinity = at::full({}, -std::numeric_limits<float>::infinity(), d.options());
    return at::softmax(at::where(losses.seen.gt(0), -d, minus_infinity), 1);
  }

 private:
  at::Tensor centre(const OwnLosses& losses, double handicap) const {
    const at::Tensor d = losses.answer.detach() - handicap * mean_;
    const at::Tensor image = (d * losses.seen).sum(1, true) / losses.seen.sum(1, true).clamp_min(1);
    return d - image;
  }

  at::Tensor mean_, spread_, seen_;
};

/// The loss of a batch under a stage's objective, `progress` the part of the stage that is done.
///
/// Shapes: y [N, 1, H, W] logits, target alike; returns []. Synchronises: never.
template <class Output>
at::Tensor total_loss(const Objective& objective, const Output& out, const OwnLosses& losses,
                      Responsibility& responsibility, const at::Tensor& target, double progress) {
  at::Tensor total = at::zeros({}, target.options().dtype(at::kFloat));
  const bool responsible = (objective.own > 0 || objective.answer > 0) && progress >= objective.from;
  at::Tensor r;
  if (objective.router > 0 || responsible) {
    responsibility.observe(losses);
    r = responsibility(losses, objective);
  }
  if (objective.own > 0 || objective.answer > 0) {
    const at::Tensor experts = losses.seen.sum(1, /*keepdim=*/true);
    at::Tensor weight = losses.seen;
    if (responsible) weight = r * ((1 - objective.floor) * experts) + losses.seen * objective.floor;
    const at::Tensor each = objective.own * losses.own + objective.answer * losses.answer;
    total = total + (weight * each).sum() / losses.seen.sum();
  }
  if (objective.mixture > 0)
    total = total + objective.mixture * loss::structure(out.y, target, loss::StructureForm::weighted_bce).mean();
  if (objective.router > 0) {
    TORCH_CHECK(out.routing.logits.defined(), "Objective: router > 0 needs a routed stage, this one has no logits");
    total = total - objective.router * (r * at::log_softmax(out.routing.logits, 1)).sum(1).mean();
  }
  if constexpr (requires { out.auxiliary_loss; }) {
    if (out.routing.logits.defined()) total = total + out.auxiliary_loss;
  }
  return total;
}

}  // namespace moecod::train
