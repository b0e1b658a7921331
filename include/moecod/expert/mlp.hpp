#pragma once
#include "moecod/layers/linear.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

struct MlpOptions {
  int64_t channels = 64;  ///< C; set by the model
  int64_t hidden = 0;     ///< 0: 4 C
  int64_t outputs = 0;    ///< 0: C
};

/// The feed-forward expert of transformers: y = W2 gelu(W1 x + b1) + b2, at every position on its own.
///
/// Shapes: x [M, C] -> [M, outputs]. Synchronises: as layers::Linear.
template <class Layers = layers::Single>
class Mlp : public torch::nn::Module {
 public:
  using rows = rows::Positions;
  template <class L>
  using rebind = Mlp<L>;
  using Options = MlpOptions;

  explicit Mlp(const Options& options = {}, Layers layers = {}) {
    const int64_t hidden = options.hidden > 0 ? options.hidden : 4 * options.channels;
    const int64_t outputs = options.outputs > 0 ? options.outputs : options.channels;
    up_ = register_module("up", std::make_shared<layers::Linear<Layers>>(options.channels, hidden, true, layers));
    down_ = register_module("down", std::make_shared<layers::Linear<Layers>>(hidden, outputs, true, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    return down_->forward(up_->forward(x, group), group, layers::Activation::gelu);
  }

 private:
  std::shared_ptr<layers::Linear<Layers>> up_, down_;
};

}  // namespace moecod::expert
