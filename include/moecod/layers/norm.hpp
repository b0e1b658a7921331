#pragma once
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "moecod/core/recomputing.hpp"
#include "moecod/layers/stack.hpp"

namespace moecod::layers {

/// Batch normalisation over all rows of an expert and all positions (Ioffe and Szegedy 2015).
///
/// In training it normalises over the rows routed to the expert in this forward, and the running statistics move
/// once: running <- (1 - momentum) running + momentum batch. Without rows nothing moves; where a channel has a single
/// value (one row of 1x1) its variance says nothing, so the running statistics are used and do not move.
///
/// Shapes: x [M, C] or [M, C, H, W]; weight, bias, running_mean, running_var [(n,) C], num_batches_tracked [(n)].
/// Synchronises: never.
template <class Layers = Single>
class BatchNorm2d : public torch::nn::Module, public BatchStatistics {
 public:
  explicit BatchNorm2d(int64_t channels, Layers layers = {}, double momentum = 0.1, double eps = 1e-5)
      : momentum_(momentum), eps_(eps) {
    weight = register_parameter("weight", at::ones(layers.shape({channels})));
    bias = register_parameter("bias", at::zeros(layers.shape({channels})));
    running_mean = register_buffer("running_mean", at::zeros(layers.shape({channels})));
    running_var = register_buffer("running_var", at::ones(layers.shape({channels})));
    num_batches_tracked = register_buffer("num_batches_tracked", at::zeros(layers.shape({}), at::kLong));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) {
        return normalise(rows, w[e], b[e], running_mean.select(0, e),
                         running_var.select(0, e), num_batches_tracked.select(0, e));
      });
    } else {
      (void)group;
      return normalise(x, weight, bias, running_mean, running_var, num_batches_tracked);
    }
  }

  // LibTorch's conversions cast integers too; the count stays int64.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override {
    const at::Tensor count = num_batches_tracked.detach().to(device, non_blocking);
    torch::nn::Module::to(device, dtype, non_blocking);
    num_batches_tracked.set_data(count);
  }
  void to(torch::Dtype dtype, bool non_blocking = false) override {
    const at::Tensor count = num_batches_tracked.detach();
    torch::nn::Module::to(dtype, non_blocking);
    num_batches_tracked.set_data(count);
  }
  void to(torch::Device device, bool non_blocking = false) override { torch::nn::Module::to(device, non_blocking); }

  at::Tensor weight, bias, running_mean, running_var, num_batches_tracked;

 private:
  at::Tensor normalise(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, const at::Tensor& mean,
                       const at::Tensor& var, const at::Tensor& tracked) const {
    TORCH_CHECK(x.dim() >= 2 && x.size(1) == w.size(0), "BatchNorm2d: expected [M, ", w.size(0), ", ...], got ",
                x.sizes());
    const bool batch_statistics = is_training() && x.numel() > x.size(1);
    const bool moves = batch_statistics && !recomputing();
    if (moves) tracked.add_(1);
    return at::batch_norm(x, w, b, batch_statistics && !moves ? at::Tensor() : mean,
                          batch_statistics && !moves ? at::Tensor() : var, batch_statistics, momentum_, eps_,
                          /*cudnn_enabled=*/true);
  }

  double momentum_, eps_;
};

/// Layer normalisation over the last dimension (Ba et al. 2016).
///
/// Shapes: x [M, ..., C]; weight, bias [(n,) C]. Synchronises: never.
template <class Layers = Single>
class LayerNorm : public torch::nn::Module {
 public:
  explicit LayerNorm(int64_t channels, double eps = 1e-5, Layers layers = {}) : channels_(channels), eps_(eps) {
    weight = register_parameter("weight", at::ones(layers.shape({channels})));
    bias = register_parameter("bias", at::zeros(layers.shape({channels})));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) {
        return at::layer_norm(rows, {channels_}, w[e], b[e], eps_);
      });
    } else {
      (void)group;
      return at::layer_norm(x, {channels_}, weight, bias, eps_);
    }
  }

  at::Tensor weight, bias;

 private:
  int64_t channels_;
  double eps_;
};

}  // namespace moecod::layers
