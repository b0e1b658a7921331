#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <optional>
#include <utility>

#include "moecod/layers/activation.hpp"
#include "moecod/layers/stack.hpp"

namespace moecod::layers {

/// y = a(x) W^T + b over the last dimension, of one expert or of n stacked ones; a is `before`, none unless it is
/// named.
///
/// Shapes: x [M, ..., in] ([M, ..., 2 in] before swiglu) -> [M, ..., out]; weight [(n,) out, in], bias [(n,) out].
/// Initial values: uniform in +-1/sqrt(in), as torch.nn.Linear.
/// Stacked layers run sorted rows on CUDA by the operator moecod::grouped_linear, where it is there: all experts at
/// once, and a(x) computed anew in the backward pass instead of kept. Single ones with a bias do in bfloat16, for sequences
/// and maps whose gradients are recorded.
/// Synchronises: for sorted rows on CUDA that the operator has no kernel for (moecod::operators::fallbacks); for a single
/// layer on CUDA the first time that it has so many sequences or maps.
template <class Layers = Single>
class Linear : public torch::nn::Module, public Decays {
 public:
  Linear(int64_t in, int64_t out, bool with_bias = true, Layers layers = {}) {
    weight = register_parameter("weight", at::zeros(layers.shape({out, in})));
    if (with_bias) bias = register_parameter("bias", at::zeros(layers.shape({out})));
    if constexpr (!Layers::stacked) {
      torch::NoGradGuard no_grad;
      const double bound = 1.0 / std::sqrt(static_cast<double>(in));
      weight.uniform_(-bound, bound);
      if (with_bias) bias.uniform_(-bound, bound);
    }
  }

  /// `activated`: a(x), where it is there already; the gradient goes through x all the same.
  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {},
                     Activation before = Activation::none, const at::Tensor& activated = {}) {
    if constexpr (Layers::stacked) {
      if (const auto* grouped = find_grouped<operators::GroupedLinear>(x, group))
        return grouped->call(x, weight, bias.defined() ? std::optional(bias) : std::nullopt, group.offsets,
                             name_of(before), activated.defined() ? std::optional(activated) : std::nullopt);
      const at::Tensor in = activate(x, before);
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(in, group,
                             [&](const at::Tensor& rows, int64_t e) { return at::linear(rows, w[e], b[e]); });
    } else {
      if (const auto* op = operators::find<operators::GroupedLinear>(); op && sums_bias_gradients(x))
        return op->call(x, as_stacked<Layers>(weight), as_stacked<Layers>(bias), offsets_of<Layers>(x, group),
                        name_of(before), activated.defined() ? std::optional(activated) : std::nullopt);
      return at::linear(activate(x, before), weight, bias);
    }
  }

  /// activate(forward(x), swiglu), for sorted rows on CUDA without the hidden layer in memory. Where no gradient is
  /// wanted.
  at::Tensor forward_swiglu(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      if (const auto* grouped = find_grouped<operators::GroupedSwiGlu>(x, group); grouped && !bias.defined())
        return grouped->call(x, weight, group.offsets, std::nullopt, std::nullopt);
    }
    return activate(forward(x, group), Activation::swiglu);
  }

  /// h = forward(x), and for sorted rows on CUDA activate(h, swiglu), both of which the next layer's forward takes.
  /// Else the second is undefined, and that layer computes it.
  std::pair<at::Tensor, at::Tensor> forward_swiglu_kept(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      if (const auto* grouped = find_grouped<operators::GroupedSwiGluKept>(x, group); grouped && !bias.defined()) {
        const auto [h, a] = grouped->call(x, weight, group.offsets, std::nullopt, std::nullopt);
        return {h, a};
      }
    }
    return {forward(x, group), {}};
  }

  at::Tensor weight, bias;

 private:
  /// Whether a single layer is to run by the operator for its bias's gradient, which is a sum over all rows. Not for rows of
  /// a matrix: their number may change with every step, and the operator's offsets are kept for each (offsets_of).
  bool sums_bias_gradients(const at::Tensor& x) const {
    return at::GradMode::is_enabled() && bias.defined() && bias.requires_grad() && in_bfloat16(x) && x.dim() >= 3 &&
           x.numel() > 0 && weight.size(-1) % 8 == 0 && weight.size(-2) % 8 == 0;
  }
};

/// Single precision at least: float64 stays, all else becomes float32.
inline at::Tensor at_least_float(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

/// The layer in single precision at least, whatever autocast and the module's type say: for logits of routers, where
/// half precision would make ties.
inline at::Tensor linear_in_float(const Linear<>& layer, const at::Tensor& x) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return at::linear(at_least_float(x), at_least_float(layer.weight),
                    layer.bias.defined() ? at_least_float(layer.bias) : layer.bias);
}

}  // namespace moecod::layers
