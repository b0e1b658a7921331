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
      : muon_(options.muon.ratio > 0 ? take_matrices(groups) : std::vector<ParameterGroup>(), options.muon,
              options.adamw.weight_decay),
        adamw_(std::move(groups), options.adamw) {}

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

  /// Errors: as AdamW::load_state.
  void load_state(const StateDict& saved) {
    adamw_.load_state(part_of_state(saved, "adamw."));
    muon_.load_state(part_of_state(saved, "muon."));
  }

 private:
  /// Moves the matrices that Muon takes out of the groups.
  static std::vector<ParameterGroup> take_matrices(std::vector<ParameterGroup>& groups) {
    std::vector<ParameterGroup> taken, left;
    for (ParameterGroup& group : groups) {
      ParameterGroup matrices{.rate_factor = group.rate_factor, .decays = true};
      ParameterGroup others{.rate_factor = group.rate_factor, .decays = group.decays};
      for (std::size_t i = 0; i < group.parameters.size(); ++i) {
        ParameterGroup& to = group.decays && Muon::takes(group.parameters[i]) ? matrices : others;
        to.names.push_back(group.names[i]);
        to.parameters.push_back(group.parameters[i]);
      }
      if (!matrices.names.empty()) taken.push_back(std::move(matrices));
      if (!others.names.empty()) left.push_back(std::move(others));
    }
    groups = std::move(left);
    return taken;
  }

  Muon muon_;
  AdamW adamw_;
};

}  // namespace moecod::train
