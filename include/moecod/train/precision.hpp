#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/state.hpp"
#include "moecod/train/state.hpp"

namespace moecod::train {

/// The type that matrix products and convolutions are computed in; parameters stay float32.
enum class Precision { Float32, BFloat16, Float16 };

/// What suits a device: bfloat16 on GPUs that compute convolutions in it (from sm_80), float16 with a loss scale on
/// older ones, float32 on the CPU and wherever mixed precision is not wanted. For a CUDA device, asks the current one.
inline Precision default_precision(at::Device device, bool mixed) {
  if (!mixed || !device.is_cuda()) return Precision::Float32;
  return at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8() ? Precision::BFloat16
                                                                             : Precision::Float16;
}

/// Autocast to a precision on this thread while this object lives. The casts of parameters that it keeps are dropped
/// with the outermost such object, so one must not outlive an optimizer step.
class Autocast {
 public:
  Autocast(at::Device device, Precision precision)
      : guard_({.device = device.type(),
                .enabled = precision != Precision::Float32,
                .dtype = precision == Precision::Float16 ? at::kHalf : at::kBFloat16,
                .cache = true}) {}

 private:
  AutocastGuard guard_;
};

/// Keeps small float16 gradients from vanishing (Micikevicius et al. 2018, arXiv 1710.03740) and finds bad steps.
///
/// The loss is multiplied by `scale` before the backward pass, the gradients divided by it after; a step with a
/// gradient that is not finite halves the scale, `growth_interval` good ones in a row double it. In the other
/// precisions the scale is 1 and stays, and only the search for gradients that are not finite remains. A step is
///
///     scale.apply(loss).backward();
///     const at::Tensor found_inf = scale.unscale(gradients);   // after gradients of all ranks are summed
///     optimizer.step(rate, found_inf);
///     scale.update(found_inf);
///
/// Shapes: scalars on the gradients' device; scale and found_inf float32, growth int32. Synchronises: never.
class LossScale {
 public:
  struct Options {
    double initial = 65536;
    int64_t growth_interval = 2000;  ///< steps
  };

  LossScale(at::Device device, Precision precision) : LossScale(device, precision, Options()) {}
  LossScale(at::Device device, Precision precision, const Options& options)
      : dynamic_(precision == Precision::Float16), growth_interval_(options.growth_interval) {
    const auto floats = at::TensorOptions(at::kFloat).device(device);
    scale_ = dynamic_ ? at::full({}, options.initial, floats) : at::ones({}, floats);
    growth_ = at::zeros({}, floats.dtype(at::kInt));
  }

  at::Tensor apply(const at::Tensor& loss) const { return dynamic_ ? loss * scale_ : loss; }

  /// Divides the gradients by the scale, in place. Returns 1 if any is infinite or not a number, else 0.
  at::Tensor unscale(const std::vector<at::Tensor>& gradients) const {
    const at::NoGradGuard no_grad;
    at::Tensor found_inf = at::zeros_like(scale_);
    if (!gradients.empty())
      at::_amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, scale_.reciprocal());
    return found_inf;
  }

  void update(const at::Tensor& found_inf) {
    const at::NoGradGuard no_grad;
    if (dynamic_) at::_amp_update_scale_(scale_, growth_, found_inf, 2.0, 0.5, growth_interval_);
  }

  const at::Tensor& scale() const { return scale_; }

  /// scale and growth: this object's own tensors.
  StateDict state() const { return {{"scale", scale_}, {"growth", growth_}}; }

  /// Errors: c10::Error naming what is missing or unknown.
  void load_state(const StateDict& saved) { copy_state("LossScale", saved, state()); }

 private:
  bool dynamic_;
  int64_t growth_interval_;
  at::Tensor scale_, growth_;
};

}  // namespace moecod::train
