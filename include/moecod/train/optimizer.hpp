#pragma once
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/train/adamw.hpp"
#include "moecod/train/muon.hpp"

namespace moecod::train {

/// What moves a model's parameters: AdamW, or with muon.ratio above 0 Muon for the weight matrices of hidden layers and
/// AdamW for everything else. Shapes, dtypes and errors as theirs. Synchronises: never.
class Optimizer {
 public:
  struct Options {
    AdamW::Options adamw;
    Muon::Options muon;

    static constexpr auto options = std::make_tuple(nested(&Options::adamw), nested(&Options::muon));
  };

  Optimizer(std::vector<ParameterGroup> groups, const Options& options)
      : Optimizer(options.muon.ratio > 0 ? split(std::move(groups)) : Split{.rest = std::move(groups)}, options) {}

  /// One step at the scheduled learning rate; skipped where `found_inf`, a float32 scalar, is 1.
  void step(double learning_rate, const std::optional<at::Tensor>& found_inf = {}) {
    muon_.step(learning_rate, found_inf);
    adamw_.step(learning_rate, found_inf);
  }

  /// The gradients of all parameters; missing ones become zeros.
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all = muon_.gradients();
    for (at::Tensor& gradient : adamw_.gradients()) all.push_back(std::move(gradient));
    return all;
  }

  /// Zeroes the gradients in place.
  void zero_grad() {
    const std::vector<at::Tensor> all = gradients();
    if (!all.empty()) at::_foreach_zero_(all);
  }

  /// adamw.* and muon.*, as their state().
  StateDict state() const {
    StateDict out;
    add_state(out, "adamw.", adamw_.state());
    add_state(out, "muon.", muon_.state());
    return out;
  }

  /// Copies a state() into this optimizer.
  /// Errors: c10::Error naming what is missing, unknown or of another shape; nothing is copied in that case.
  void load_state(const StateDict& saved) { copy_state("Optimizer", saved, state()); }

 private:
  struct Split {
    std::vector<ParameterGroup> matrices = {}, rest = {};
  };

  Optimizer(Split groups, const Options& options)
      : muon_(groups.matrices, options.muon, options.adamw.weight_decay),
        adamw_(std::move(groups.rest), options.adamw) {}

  static Split split(std::vector<ParameterGroup> groups) {
    Split out;
    for (const ParameterGroup& group : groups) {
      ParameterGroup matrices{.rate_factor = group.rate_factor, .decays = true};
      ParameterGroup rest{.rate_factor = group.rate_factor, .decays = group.decays};
      for (std::size_t i = 0; i < group.parameters.size(); ++i) {
        ParameterGroup& to = group.decays && Muon::takes(group.parameters[i]) ? matrices : rest;
        to.names.push_back(group.names[i]);
        to.parameters.push_back(group.parameters[i]);
      }
      if (!matrices.names.empty()) out.matrices.push_back(std::move(matrices));
      if (!rest.names.empty()) out.rest.push_back(std::move(rest));
    }
    return out;
  }

  Muon muon_;
  AdamW adamw_;
};

}  // namespace moecod::train
