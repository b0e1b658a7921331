#pragma once
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>

#include "moecod/layers/stack.hpp"

namespace moecod::layers {

/// y = x W^T + b over the last dimension, of one expert or of n stacked ones.
///
/// Shapes: x [M, ..., in] -> [M, ..., out]; weight [(n,) out, in], bias [(n,) out].
/// Initial values: uniform in +-1/sqrt(in), as torch.nn.Linear. Synchronises: never.
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

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) { return at::linear(rows, w[e], b[e]); });
    } else {
      (void)group;
      return at::linear(x, weight, bias);
    }
  }

  at::Tensor weight, bias;
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
