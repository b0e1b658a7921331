#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_lerp.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/train/state.hpp"

namespace moecod::train {

/// An exponential moving average of a module's parameters, and copies of its buffers.
///
/// After optimizer step s = 0, 1, ...
///     average <- d average + (1 - d) parameter,  d = min(decay, (1 + s) / (10 + s)),
/// so that the first steps do not weigh like the random start; buffers are copied. Evaluate and save with the average
/// in the module's place:
///
///     { const auto averaged = ema.swap();  evaluate(model);  write_state(path, state_dict(model)); }
///
/// The module must be on its device before this is made, and outlive it. Shapes and dtypes: the module's own.
/// Synchronises: never. Source: Polyak and Juditsky 1992; the ramp is the one of TensorFlow's ExponentialMovingAverage.
class Ema {
 public:
  /// Errors: c10::Error unless 0 <= decay < 1.
  Ema(const torch::nn::Module& module, double decay) : decay_(decay) {
    TORCH_CHECK(decay >= 0 && decay < 1, "Ema: decay must be in [0, 1), got ", decay);
    const at::NoGradGuard no_grad;
    const auto keep = [](Pairs& pairs, const auto& items) {
      for (const auto& item : items) {
        pairs.names.push_back(item.key());
        pairs.live.push_back(item.value());
        pairs.average.push_back(item.value().detach().clone());
      }
    };
    keep(parameters_, module.named_parameters());
    keep(buffers_, module.named_buffers());
  }

  /// Takes in the module as it is after optimizer step `step`.
  void update(int64_t step) {
    const at::NoGradGuard no_grad;
    const double decay = std::min(decay_, static_cast<double>(1 + step) / static_cast<double>(10 + step));
    if (!parameters_.live.empty()) at::_foreach_lerp_(parameters_.average, parameters_.live, 1 - decay);
    copy_buffers();
  }

  /// Takes in the module's buffers once more, where they have changed since the update.
  void copy_buffers() {
    const at::NoGradGuard no_grad;
    if (!buffers_.live.empty()) at::_foreach_copy_(buffers_.average, buffers_.live);
  }

  /// The average is in the module while this lives, and the module's own values are in the average.
  class Swap {
   public:
    explicit Swap(Ema& ema) : ema_(ema) { ema_.exchange(); }
    Swap(const Swap&) = delete;
    Swap& operator=(const Swap&) = delete;
    ~Swap() { ema_.exchange(); }

   private:
    Ema& ema_;
  };
  [[nodiscard]] Swap swap() { return Swap(*this); }

  /// The averages and the copied buffers under the module's own names: the tensors of this object.
  StateDict state() const {
    StateDict out;
    for (const Pairs* pairs : {&parameters_, &buffers_})
      for (std::size_t i = 0; i < pairs->names.size(); ++i) out.emplace_back(pairs->names[i], pairs->average[i]);
    return out;
  }

  /// Copies a state() into this object.
  /// Errors: c10::Error naming what is missing, unknown or of another shape; nothing is copied then.
  void load_state(const StateDict& saved) { copy_state("Ema", saved, state()); }

 private:
  struct Pairs {
    std::vector<std::string> names;
    std::vector<at::Tensor> live, average;
  };

  void exchange() {
    const at::NoGradGuard no_grad;
    for (Pairs* pairs : {&parameters_, &buffers_}) {
      for (std::size_t i = 0; i < pairs->live.size(); ++i) {
        const at::Tensor kept = pairs->live[i].clone();
        pairs->live[i].copy_(pairs->average[i]);
        pairs->average[i].copy_(kept);
      }
    }
  }

  double decay_;
  Pairs parameters_, buffers_;
};

}  // namespace moecod::train
