#pragma once
// A feature-level model whose policies are hidden behind virtual functions, so that trainer, losses and scores compile
// once for all rows.

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecod/model/feature_level.hpp"

namespace moecod::examples::ablation {

/// What train::FeatureLevelTask and the probes ask of a model; its parts have the names that FeatureLevel gives them.
class AnyFeatureModel : public torch::nn::Module {
 public:
  static constexpr int64_t num_experts = 6;  ///< of every row, on each level

  /// The auxiliary loss is zero for policies that have none.
  virtual FeatureOutput<true> forward(const at::Tensor& images) = 0;

  virtual bool has_auxiliary_losses() const = 0;

  /// Of each level: the auxiliary loss of a decision; undefined for policies that have none.
  virtual std::vector<at::Tensor> auxiliary_losses(const std::vector<Routing>& routing) = 0;

  /// Of each level's router.
  virtual std::vector<std::vector<at::Tensor>> router_parameters() const = 0;

  std::shared_ptr<FeatureHead<>> head;
};

template <class Model>
class ErasedFeatureModel : public AnyFeatureModel {
 public:
  using Balance = typename Model::mixture_type::balance_type;
  static_assert(Model::num_experts == num_experts, "moecod: rows of an ablation have six experts a level");

  explicit ErasedFeatureModel(const typename Model::Options& options) : model_(options) {
    register_module("backbone", model_.backbone);
    const auto list = register_module("mixtures", std::make_shared<torch::nn::Module>());
    for (std::size_t i = 0; i < model_.mixtures.size(); ++i) list->register_module(std::to_string(i), model_.mixtures[i]);
    head = register_module("head", model_.head);
  }

  FeatureOutput<true> forward(const at::Tensor& images) override {
    auto from = model_.forward(images);
    FeatureOutput<true> out;
    out.maps = std::move(from.maps);
    out.routing = std::move(from.routing);
    if constexpr (has_auxiliary_loss<Balance>) {
      out.auxiliary_loss = std::move(from.auxiliary_loss);
    } else {
      out.auxiliary_loss = at::zeros({}, out.maps.logits.options());
    }
    return out;
  }

  bool has_auxiliary_losses() const override { return has_auxiliary_loss<Balance>; }

  std::vector<at::Tensor> auxiliary_losses(const std::vector<Routing>& routing) override {
    std::vector<at::Tensor> out(routing.size());
    if constexpr (has_auxiliary_loss<Balance>)
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = model_.mixtures[i]->balance->loss(routing[i]);
    return out;
  }

  std::vector<std::vector<at::Tensor>> router_parameters() const override {
    std::vector<std::vector<at::Tensor>> out;
    for (const auto& mixture : model_.mixtures) out.push_back(mixture->router->parameters());
    return out;
  }

 private:
  Model model_;  // its parts are registered here; it holds nothing else that has a state
};

}  // namespace moecod::examples::ablation
