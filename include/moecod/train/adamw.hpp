#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/core/options.hpp"
#include "moecod/core/state.hpp"
#include "moecod/train/parameter_groups.hpp"
#include "moecod/train/state.hpp"

namespace moecod::train {

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), one fused operation a group.
///
/// With g the gradient, r the group's learning rate and t the number of steps taken,
///     w <- w - r * weight_decay * w                        (groups that decay)
///     m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
///     w <- w - r * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
///
/// A parameter without a gradient counts as one whose gradient is zero: its moments fade and it decays. Gradients are
/// zeroed in place, never removed, so what a step does follows from the tensors alone, not from which parameter once
/// had a gradient: a resumed run repeats an unbroken one, and captured graphs and a reducer's buckets keep their
/// addresses. What shall not move must not require gradients.
///
/// Shapes: moments like their parameters; steps float32 scalars on the parameters' device. dtypes: float32, float64
/// and, on CUDA, bfloat16 and float16; one dtype and one device a group. Synchronises: never.
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double weight_decay = 1e-4;  ///< per step, times the parameter's learning rate

    static constexpr auto options = std::make_tuple(
        option(&Options::beta1, "beta1", "decay of the gradient's mean", between(0, 0.99999)),
        option(&Options::beta2, "beta2", "decay of the gradient's square", between(0, 0.99999)),
        option(&Options::eps, "eps", "added to the root of the gradient's square", above(0)),
        option(&Options::weight_decay, "weight-decay", "weight decay of convolutions and linear maps", at_least(0)));
  };

  /// Errors: c10::Error for a group that mixes devices or dtypes.
  AdamW(std::vector<ParameterGroup> groups, const Options& options) : options_(options) {
    for (ParameterGroup& group : groups) {
      Moments m{.group = std::move(group)};
      for (std::size_t i = 0; i < m.group.parameters.size(); ++i) {
        const at::Tensor& parameter = m.group.parameters[i];
        TORCH_CHECK(parameter.options().type_equal(m.group.parameters.front().options()) &&
                        parameter.device() == m.group.parameters.front().device(),
                    "AdamW: a group must have one device and one dtype; ", m.group.names[i], " is ",
                    parameter.toString(), " on ", parameter.device(), ", ", m.group.names.front(), " is ",
                    m.group.parameters.front().toString(), " on ", m.group.parameters.front().device());
        m.first.push_back(at::zeros_like(parameter));
        m.second.push_back(at::zeros_like(parameter));
        m.steps.push_back(at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false)));
      }
      groups_.push_back(std::move(m));
    }
  }

  /// One step at the scheduled learning rate.
  ///
  /// `found_inf`, a float32 scalar on the parameters' device, skips the step where it is 1: parameters,
  /// moments and step counts stay.
  void step(double learning_rate, const std::optional<at::Tensor>& found_inf = {}) {
    const at::NoGradGuard no_grad;
    for (Moments& m : groups_) {
      if (found_inf) {
        at::_foreach_add_(m.steps, 1 - *found_inf);
      } else {
        at::_foreach_add_(m.steps, 1);
      }
      at::_fused_adamw_(m.group.parameters, gradients_of(m.group.parameters), m.first, m.second, {}, m.steps,
                        learning_rate * m.group.rate_factor, options_.beta1, options_.beta2,
                        m.group.decays ? options_.weight_decay : 0.0, options_.eps, /*amsgrad=*/false,
                        /*maximize=*/false, /*grad_scale=*/{}, found_inf);
    }
  }

  /// Zeroes the gradients in place.
  void zero_grad() {
    const std::vector<at::Tensor> all = gradients();
    if (!all.empty()) at::_foreach_zero_(all);
  }

  /// The gradients of all parameters, in the order of the groups; missing ones become zeros.
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all;
    for (const Moments& m : groups_)
      for (at::Tensor& gradient : gradients_of(m.group.parameters)) all.push_back(std::move(gradient));
    return all;
  }

  /// exp_avg.NAME, exp_avg_sq.NAME and step.NAME for every parameter: the optimizer's own tensors.
  StateDict state() const {
    StateDict out;
    for (const Moments& m : groups_) {
      for (std::size_t i = 0; i < m.group.names.size(); ++i) {
        out.emplace_back("exp_avg." + m.group.names[i], m.first[i]);
        out.emplace_back("exp_avg_sq." + m.group.names[i], m.second[i]);
        out.emplace_back("step." + m.group.names[i], m.steps[i]);
      }
    }
    return out;
  }

  /// Copies a state() into this optimizer.
  /// Errors: c10::Error naming what is missing, unknown or of another shape: other parameters were trained then.
  /// Nothing is copied in that case.
  void load_state(const StateDict& saved) { copy_state("AdamW", saved, state()); }

 private:
  struct Moments {
    ParameterGroup group;
    std::vector<at::Tensor> first = {}, second = {}, steps = {};
  };

  Options options_;
  std::vector<Moments> groups_;
};

}  // namespace moecod::train
