#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
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

/// Matrices [n, r, c], each with its singular values moved towards 1 and its singular vectors kept: Newton-Schulz steps
///     X <- a X + (b X X' + c (X X')^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)
/// from X of Frobenius norm 1. Five steps bring singular values above 0.002 of the norm into 0.68 .. 1.21, three those
/// above 0.03; smaller ones grow by at most a each step, and a zero matrix stays zero. Synchronises: never.
inline at::Tensor orthogonalized(const at::Tensor& matrices, int64_t iterations) {
  const bool tall = matrices.size(1) > matrices.size(2);
  at::Tensor x = tall ? matrices.transpose(1, 2) : matrices;
  x = x / (at::linalg_vector_norm(x, 2, at::IntArrayRef{1, 2}, /*keepdim=*/true) + 1e-12);
  for (int64_t i = 0; i < iterations; ++i) {
    const at::Tensor gram = at::bmm(x, x.transpose(1, 2));
    const at::Tensor polynomial = at::baddbmm(gram, gram, gram, /*beta=*/-4.7750, /*alpha=*/2.0315);
    x = at::baddbmm(x, polynomial, x, /*beta=*/3.4445);
  }
  return tall ? x.transpose(1, 2) : x;
}

/// Momentum with orthogonalized steps, for the weight matrices of hidden layers.
///
/// With g the gradient as a matrix [out, in * kh * kw], r the group's learning rate times `ratio`,
///     m <- momentum m + g
///     w <- w - r * weight_decay * w - r * sqrt(max(1, rows / columns)) * orthogonalized(g + momentum m)
/// The strong directions of a layer's weights so move equally far, where Adam from random weights follows few of them
/// for long (docs/results.md). Each expert of a stacked layer is a matrix of its own. A matrix whose gradient is zero,
/// as an idle expert's, decays but takes no step, since any length of momentum would become a full one; its momentum
/// fades.
///
/// Which weights are taken: those that decay with both sides of [out, in / groups * kh * kw] at least 16. So norms,
/// biases, narrow output maps, depthwise 3x3 convolutions and decoders of fewer channels stay with AdamW; a patch
/// embedding and a wide gate do not.
///
/// Shapes: momentum [n, rows, columns], n = 1 or the number of stacked experts. dtypes: float32, float64. Synchronises:
/// never. Errors: c10::Error for other parameters.
/// Source: Jordan et al. 2024, Muon (docs/sources.md); the scale is taken of the flattened matrix.
class Muon {
 public:
  struct Options {
    double ratio = 0;         ///< of the learning rate of matrices to that of AdamW; 0: AdamW moves them too
    double momentum = 0.95;
    int64_t iterations = 5;   ///< Newton-Schulz steps

    static constexpr auto options = std::make_tuple(
        option(&Options::ratio, "muon-ratio",
               "learning rate of hidden layers' matrices under Muon, as a multiple of --lr; 0: AdamW moves them too",
               at_least(0)),
        option(&Options::momentum, "muon-momentum", "decay of the gradients' sum", between(0, 0.99999)),
        option(&Options::iterations, "muon-iterations", "Newton-Schulz steps of each update", between(1, 20)));
  };

  /// Whether a weight that decays is a matrix for Muon.
  static bool takes(const at::Tensor& weight) {
    const at::Tensor matrices = as_matrices(weight);
    return matrices.dim() == 3 && std::min(matrices.size(1), matrices.size(2)) >= 16;
  }

  /// Errors: c10::Error for a parameter that is no such weight.
  Muon(const std::vector<ParameterGroup>& groups, const Options& options, double weight_decay)
      : options_(options), weight_decay_(weight_decay) {
    for (const ParameterGroup& group : groups) {
      for (std::size_t i = 0; i < group.parameters.size(); ++i) {
        const at::Tensor& parameter = group.parameters[i];
        TORCH_CHECK(takes(parameter), "Muon: expected weights of at least 16 x 16, got ", group.names[i], " of ",
                    parameter.sizes());
        TORCH_CHECK(parameter.scalar_type() == at::kFloat || parameter.scalar_type() == at::kDouble,
                    "Muon: expected float32 or float64 parameters, got ", group.names[i], " of ",
                    parameter.scalar_type());
        Batch& batch = batch_for(as_matrices(parameter), group);
        batch.names.push_back(group.names[i]);
        batch.parameters.push_back(parameter);
      }
    }
    for (Batch& batch : batches_) {
      const at::Tensor one = as_matrices(batch.parameters.front());
      batch.per_parameter = one.size(0);
      batch.momentum = at::zeros({batch.per_parameter * int64_t(batch.parameters.size()), one.size(1), one.size(2)},
                                 one.options().requires_grad(false));
    }
  }

  /// One step at the scheduled learning rate. `found_inf`, a float32 scalar on the parameters' device, skips the step
  /// where it is 1.
  void step(double learning_rate, const std::optional<at::Tensor>& found_inf = {}) {
    const at::NoGradGuard no_grad;
    for (Batch& batch : batches_) {
      const double rate = learning_rate * options_.ratio * batch.rate_factor;
      std::vector<at::Tensor> rows;
      for (const at::Tensor& gradient : gradients_of(batch.parameters)) rows.push_back(as_matrices(gradient));
      const at::Tensor gradient = at::cat(rows);
      at::Tensor momentum = batch.momentum * options_.momentum + gradient;
      const double rows_per_column = double(gradient.size(1)) / double(gradient.size(2));
      at::Tensor update = orthogonalized(gradient + options_.momentum * momentum, options_.iterations);
      update = update * (rate * std::sqrt(std::max(1.0, rows_per_column)));
      update = at::where(gradient.abs().amax({1, 2}, /*keepdim=*/true).gt(0), update, at::zeros({}, update.options()));
      at::Tensor decay = at::full({}, rate * weight_decay_, gradient.options());
      if (found_inf) {
        const at::Tensor skipped = found_inf->reshape({}).gt(0);
        momentum = at::where(skipped, batch.momentum, momentum);
        update = at::where(skipped, at::zeros({}, update.options()), update);
        decay = at::where(skipped, at::zeros({}, decay.options()), decay);
      }
      batch.momentum.copy_(momentum);
      for (std::size_t i = 0; i < batch.parameters.size(); ++i) {
        at::Tensor& parameter = batch.parameters[i];
        parameter.mul_(1 - decay).sub_(part(update, batch, i).reshape(parameter.sizes()));
      }
    }
  }

  /// The gradients of all parameters, batch by batch; missing ones become zeros.
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all;
    for (const Batch& batch : batches_)
      for (at::Tensor& gradient : gradients_of(batch.parameters)) all.push_back(std::move(gradient));
    return all;
  }

  /// momentum.NAME for every parameter: [experts, rows, columns], views of the optimizer's own tensors.
  StateDict state() const {
    StateDict out;
    for (const Batch& batch : batches_)
      for (std::size_t i = 0; i < batch.names.size(); ++i)
        out.emplace_back("momentum." + batch.names[i], part(batch.momentum, batch, i));
    return out;
  }

  /// Copies a state() into this optimizer. Errors: as AdamW::load_state.
  void load_state(const StateDict& saved) { copy_state("Muon", saved, state()); }

 private:
  /// Matrices of one shape, learning-rate factor, dtype and device, which are orthogonalized together.
  struct Batch {
    double rate_factor = 1;
    std::vector<std::string> names = {};
    std::vector<at::Tensor> parameters = {};
    int64_t per_parameter = 1;
    at::Tensor momentum = {};  // [per_parameter * parameters, rows, columns]
  };

  /// [out, ...] -> [1, out, -1]; stacked, [n, out, ...] -> [n, out, -1]: stacking makes the number of dimensions odd.
  static at::Tensor as_matrices(const at::Tensor& weight) {
    if (weight.dim() == 2 || weight.dim() == 4) return weight.reshape({1, weight.size(0), -1});
    if (weight.dim() == 3 || weight.dim() == 5) return weight.reshape({weight.size(0), weight.size(1), -1});
    return weight;
  }

  static at::Tensor part(const at::Tensor& all, const Batch& batch, std::size_t i) {
    return all.narrow(0, int64_t(i) * batch.per_parameter, batch.per_parameter);
  }

  Batch& batch_for(const at::Tensor& matrices, const ParameterGroup& group) {
    for (Batch& batch : batches_) {
      const at::Tensor& other = batch.parameters.front();
      if (batch.rate_factor == group.rate_factor && as_matrices(other).sizes() == matrices.sizes() &&
          other.scalar_type() == matrices.scalar_type() && other.device() == matrices.device())
        return batch;
    }
    return batches_.emplace_back(Batch{.rate_factor = group.rate_factor});
  }

  Options options_;
  double weight_decay_;
  std::vector<Batch> batches_;
};

}  // namespace moecod::train
