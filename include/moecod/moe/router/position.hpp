#pragma once
#include <ATen/ops/relu.h>

#include <algorithm>

#include "moecod/layers/linear.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::router {

/// One decision a position: a small perceptron over the channels.
///
///     logits = W2 relu(W1 x + b1) + b2,   C -> C / 4 -> E
///
/// Shapes: x [B, C, H, W] -> logits [B*H*W, E]; x [N, C] -> [N, E]. Synchronises: never.
class Position : public torch::nn::Module {
 public:
  using policy_kind = kind::router;
  using granularity = rows::Positions;
  struct Options {
    int64_t experts = 1;   ///< set by the mixture
    int64_t channels = 4;  ///< C; set by the model
    int64_t reduction = 4; ///< C / hidden width, >= 1
  };

  Position() : Position(Options()) {}
  explicit Position(const Options& options) {
    TORCH_CHECK(options.reduction >= 1, "router::Position: reduction must be at least 1, got ", options.reduction);
    const int64_t hidden = std::max<int64_t>(1, options.channels / options.reduction);
    hidden_ = register_module("hidden", std::make_shared<layers::Linear<>>(options.channels, hidden));
    logits_ = register_module("logits", std::make_shared<layers::Linear<>>(hidden, options.experts));
  }

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor flat = rows::to_positions(x);
    TORCH_CHECK(flat.size(1) == hidden_->weight.size(1), "router::Position: expected ", hidden_->weight.size(1),
                " channels, got shape ", x.sizes());
    return layers::linear_in_float(*logits_, at::relu(hidden_->forward(flat)));
  }

 private:
  std::shared_ptr<layers::Linear<>> hidden_, logits_;
};

}  // namespace moecod::router
