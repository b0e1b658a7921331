#pragma once
#include <ATen/core/grad_mode.h>

#include <optional>
#include <utility>

#include "moecod/layers/linear.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

struct SwiGluOptions {
  int64_t channels = 64;  ///< d; set by the model
  int64_t hidden = 0;     ///< n; 0: 4 d
};

/// The gated feed-forward expert of language models, at every position on its own, without biases:
///
///     y = W2 (silu(g) u),  [g, u] = W1 x
///
/// Shapes: x [M, d] -> [M, d]; W1 [2 n, d], W2 [d, n]. Synchronises: as layers::Linear.
/// Stacked, the kernels of moecod::cuda take x and weights in bfloat16 (a model cast to it, or autocast), d and n multiples of 8,
/// on compute capability 9.0, up to 256 experts.
/// Source: Shazeer 2020, arXiv 2002.05202.
template <class Layers = layers::Single>
class SwiGlu : public torch::nn::Module {
 public:
  using rows = rows::Positions;
  template <class L>
  using rebind = SwiGlu<L>;
  using Options = SwiGluOptions;

  explicit SwiGlu(const Options& options = {}, Layers layers = {}) {
    const int64_t hidden = options.hidden > 0 ? options.hidden : 4 * options.channels;
    up_ = register_module("up", std::make_shared<layers::Linear<Layers>>(options.channels, 2 * hidden, false, layers));
    down_ = register_module("down", std::make_shared<layers::Linear<Layers>>(hidden, options.channels, false, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if (!at::GradMode::is_enabled()) return down_->forward(up_->forward_swiglu(x, group), group);
    const auto [h, a] = up_->forward_swiglu_kept(x, group);
    return down_->forward(h, group, layers::Activation::swiglu, a);
  }

  /// Where operators do all of it at once and that pays: what a combination by weights [N, S], of the slots that order
  /// and position name (moecod::Plan), makes of the rows forward(gather(x)), and these rows. x [N, d] -> [N, d], [M, d].
  /// Where kernels sort rows as they load them (bfloat16, compute capability 9.0), sorted x is not written, nor, while gradients
  /// are recorded, those of the rows: that of the weights comes from where the gate's does. Then it is for d >= n alone, since
  /// it adds to the gate's backward pass.
  std::optional<std::pair<at::Tensor, at::Tensor>> forward_dispatched(const at::Tensor& x,
                                                                       const typename Layers::Group& group,
                                                                       const at::Tensor& weights,
                                                                       const at::Tensor& order,
                                                                       const at::Tensor& position)
    requires(Layers::stacked)
  {
    const auto* hidden = layers::find_grouped<operators::GroupedSwiGlu>(x, group);
    if (!hidden || x.dim() != 2 || weights.scalar_type() != at::kFloat) return {};
    if (!at::GradMode::is_enabled()) {
      const at::Tensor rows = down_->forward(hidden->call(x, up_->weight, group.offsets, order, position), group);
      return std::pair(operators::find<operators::Combine>()->call(rows, weights, order, position), rows);
    }
    if (down_->weight.size(-2) < down_->weight.size(-1)) return {};
    const auto [h, a] =
        operators::find<operators::GroupedSwiGluKept>()->call(x, up_->weight, group.offsets, order, position);
    const auto [y, rows] = operators::find<operators::GroupedSwiGluCombine>()->call(h, a, down_->weight, group.offsets,
                                                                                    weights, order, position);
    return std::pair(y, rows);
  }

 private:
  std::shared_ptr<layers::Linear<Layers>> up_, down_;
};

}  // namespace moecod::expert
