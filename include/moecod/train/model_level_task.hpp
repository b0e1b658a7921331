#pragma once
#include <ATen/ops/randperm.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moecod/core/pyramid.hpp"
#include "moecod/train/objective.hpp"
#include "moecod/train/task.hpp"
#include "moecod/train/validate.hpp"

namespace moecod::train {

/// Training of a ModelLevel: who sees a picture and what the loss is made of is the stage's to say
/// (train/stage.hpp, train/objective.hpp). Concept moecod::train::task.
template <class Model>
class ModelLevelTask {
 public:
  using model_type = Model;
  using score_type = Validation;

  ModelLevelTask(const Stage& stage, at::Device device, int64_t replicas) : stage_(stage), device_(device) {
    for (int64_t r = 0; r < replicas; ++r) {
      responsibility_.push_back(std::make_unique<Responsibility>(Model::num_experts));
      responsibility_.back()->to(device);
    }
  }

  /// The routing of stages that do not ask the router, the same for all replicas.
  std::optional<Routing> draw(int64_t rows) {
    const int64_t experts = Model::num_experts;
    if (stage_.exposure == Exposure::only) return Routing::to(stage_.expert, rows, experts, device_);
    if (stage_.exposure != Exposure::drawn) return std::nullopt;
    const at::Tensor drawn = at::randperm(experts, at::kLong);
    const int64_t* p = drawn.const_data_ptr<int64_t>();
    return Routing::to(std::vector<int64_t>(p, p + std::min(experts, stage_.experts_per_step)), rows, experts, device_);
  }

  at::Tensor loss(int64_t replica, Model& model, const at::Tensor& images, const at::Tensor& masks,
                  const std::optional<Routing>& drawn, double progress) {
    const Scene scene = model.look(images);
    const Decision decision = drawn ? Decision{*drawn, *drawn} : decide(model, scene);
    auto out = model.mixture->run(scene, decision.executed);
    if constexpr (requires { out.auxiliary_loss; }) {
      // What balances is the router's own choice, not the one that is executed so that every expert learns.
      if (decision.own.logits.defined()) out.auxiliary_loss = model.mixture->balance->loss(decision.own);
    }
    OwnLosses losses;
    if (stage_.objective.own > 0 || stage_.objective.answer > 0 || stage_.objective.router > 0)
      losses = own_losses(*model.mixture->experts, out.parts, masks, progress);
    return total_loss(stage_.objective, out, losses, *responsibility_[std::size_t(replica)], masks, progress);
  }

  Validation score(Model& model, data::Loader<data::AnySource>& loader, distributed::Group& group) {
    return validate(model, loader, device_, group);
  }

  /// R.mean, R.spread, R.seen of each replica R's responsibilities.
  StateDict state() const {
    StateDict out;
    for (std::size_t r = 0; r < responsibility_.size(); ++r)
      for (const auto& [name, tensor] : state_dict(*responsibility_[r]))
        out.emplace_back(std::to_string(r) + "." + name, tensor);
    return out;
  }

 private:
  /// The routing to execute, and the router's own.
  struct Decision {
    Routing executed, own;
  };

  Decision decide(Model& model, const Scene& scene) {
    const Routing own = model.mixture->route(scene);
    Routing executed = own;
    if (stage_.exposure == Exposure::all) {
      // Every expert runs; those that were not chosen have weight 0 in the answer.
      executed = Routing::all(scene.image.size(0), Model::num_experts, device_);
      executed.weights = own.dense_weights();
      executed.logits = own.logits;
      executed.scores = own.scores;
    }
    if (stage_.objective.detach_gates) executed.weights = executed.weights.detach();
    return {executed, own};
  }

  Stage stage_;
  at::Device device_;
  std::vector<std::unique_ptr<Responsibility>> responsibility_;  // one a replica
};

}  // namespace moecod::train
