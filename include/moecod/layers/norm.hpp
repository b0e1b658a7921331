#pragma once
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "moecod/core/recomputing.hpp"
#include "moecod/kernel/arguments.hpp"
#include "moecod/layers/stack.hpp"
#include "moecod/layers/synchronised_norm.hpp"

namespace moecod::layers {

/// Batch normalisation over all rows of an expert and all positions (Ioffe and Szegedy 2015).
///
/// In training it normalises over the rows routed to the expert in this forward, and the running statistics move
/// once: running <- (1 - momentum) running + momentum batch. Without rows nothing moves; where a channel has a single
/// value (one row of 1x1) its variance says nothing, so the running statistics are used and do not move. With
/// synchronised statistics (distributed/synchronise_statistics.hpp) all of this is said of the rows of all ranks
/// together.
///
/// Shapes: x [M, C] or [M, C, H, W]; weight, bias, running_mean, running_var [(n,) C], num_batches_tracked [(n)].
/// Stacked layers run sorted images on CUDA by the operator moecod::grouped_batch_norm, where it is there, unless
/// statistics are synchronised; single ones do behind a convolution in bfloat16 (conv_norm.hpp).
/// Synchronises: for sorted images on CUDA that no kernel takes; behind such a convolution as that.
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
      if (runs_grouped(x, group)) return forward_grouped(x, group, {}, /*relu=*/false);
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) {
        return normalise(rows, w[e], b[e], running_mean.select(0, e),
                         running_var.select(0, e), num_batches_tracked.select(0, e));
      }, /*idle=*/synchronises());
    } else {
      (void)group;
      return normalise(x, weight, bias, running_mean, running_var, num_batches_tracked);
    }
  }

  /// Whether forward_grouped runs on such images.
  bool runs_grouped(const at::Tensor& x, const typename Layers::Group& group) const {
    if (x.dim() != 4 || synchronises()) return false;
    if constexpr (Layers::stacked) {
      return find_grouped<operators::GroupedBatchNorm>(x, group);
    } else {
      (void)group;
      return x.size(1) % 8 == 0 && running_mean.scalar_type() == at::kFloat && in_bfloat16(x) &&
             operators::find<operators::GroupedBatchNorm>();
    }
  }

  /// All experts at once, then ReLU if asked for. moments: those that Conv2d::forward_grouped returned with x, or none.
  at::Tensor forward_grouped(const at::Tensor& x, const typename Layers::Group& group,
                             const std::optional<at::Tensor>& moments, bool relu) {
    const auto [y, used] = operators::find<operators::GroupedBatchNorm>()->call(
        x, as_stacked<Layers>(weight), as_stacked<Layers>(bias), as_stacked<Layers>(running_mean),
        as_stacked<Layers>(running_var), as_stacked<Layers>(num_batches_tracked), offsets_of<Layers>(x, group), moments,
        is_training(), is_training() && !recomputing(), momentum_, eps_, relu);
    return y;
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
  bool synchronises() const { return ranks != nullptr && is_training(); }

  at::Tensor normalise(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, const at::Tensor& mean,
                       const at::Tensor& var, const at::Tensor& tracked) const {
    TORCH_CHECK(x.dim() >= 2 && x.size(1) == w.size(0), "BatchNorm2d: expected [M, ", w.size(0), ", ...], got ",
                x.sizes());
    if (synchronises()) return normalise_over_ranks(x, w, b, mean, var, tracked);
    const bool batch_statistics = is_training() && x.numel() > x.size(1);
    const bool moves = batch_statistics && !recomputing();
    if (moves) tracked.add_(1);
    return at::batch_norm(x, w, b, batch_statistics && !moves ? at::Tensor() : mean,
                          batch_statistics && !moves ? at::Tensor() : var, batch_statistics, momentum_, eps_,
                          /*cudnn_enabled=*/true);
  }

  at::Tensor normalise_over_ranks(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, const at::Tensor& mean,
                                  const at::Tensor& var, const at::Tensor& tracked) const {
    const bool recording = at::GradMode::is_enabled();
    at::NoGradGuard no_grad;
    const detail::RankStatistics batch = detail::rank_statistics(x, *ranks);
    const at::Tensor follow = batch.count.gt(1).to(at::kFloat);
    const at::Tensor used_mean = at::where(follow.gt(0), batch.mean, mean.to(at::kFloat));
    const at::Tensor used_var = at::where(follow.gt(0), batch.var, var.to(at::kFloat));
    if (!recomputing()) {
      tracked.add_(follow.to(at::kLong));
      const at::Tensor unbiased = (batch.count / (batch.count - 1).clamp_min(1)).to(at::kFloat);
      mean.lerp_(used_mean.to(mean.scalar_type()), momentum_);
      var.add_(momentum_ * follow * (batch.var * unbiased - var));
    }
    at::AutoGradMode record(recording);
    return detail::SynchronisedNorm::apply(x, w, b, used_mean, used_var, batch.count, follow, eps_,
                                           reinterpret_cast<int64_t>(ranks.get()));
  }

  double momentum_, eps_;
};

/// Layer normalisation over the last dimension (Ba et al. 2016).
///
/// Under autocast to bfloat16 on CUDA the result is bfloat16, where LibTorch's would be float32, and so are residual sums of
/// such results and the levels of a pyramid: half the bytes, at the price of their rounding. Mean and variance are taken in
/// float32.
///
/// Shapes: x [M, ..., C]; weight, bias [(n,) C]. In bfloat16 on CUDA it runs by the operator moecod::grouped_layer_norm,
/// where it is there and takes the width; of single layers those of sequences and maps. Synchronises: for a single layer on CUDA
/// the first time that it has so many of them; for stacked ones that do not run
/// by it.
template <class Layers = Single>
class LayerNorm : public torch::nn::Module {
 public:
  explicit LayerNorm(int64_t channels, double eps = 1e-5, Layers layers = {}) : channels_(channels), eps_(eps) {
    weight = register_parameter("weight", at::ones(layers.shape({channels})));
    bias = register_parameter("bias", at::zeros(layers.shape({channels})));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      if (find_grouped<operators::GroupedLayerNorm>(x, group) && in_bfloat16(x) && has_kernel())
        return forward_grouped(x, group);
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) {
        return normalise(rows, w[e], b[e]);
      });
    } else {
      // Not for rows of a matrix: their number may change with every step, and the offsets are kept for each (offsets_of).
      if (in_bfloat16(x) && x.dim() >= 3 && has_kernel() && operators::find<operators::GroupedLayerNorm>())
        return forward_grouped(x, group);
      return normalise(x, weight, bias);
    }
  }

  at::Tensor weight, bias;

 private:
  bool has_kernel() const { return kernel::layer_norm_takes(channels_, kernel::Type::bfloat16); }

  at::Tensor forward_grouped(const at::Tensor& x, const typename Layers::Group& group) const {
    return operators::find<operators::GroupedLayerNorm>()->call(
        x.to(at::kBFloat16), as_stacked<Layers>(weight).to(at::kFloat), as_stacked<Layers>(bias).to(at::kFloat),
        offsets_of<Layers>(x, group), eps_);
  }

  at::Tensor normalise(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) const {
    if (!AutocastState::current(at::kCUDA).enabled || !in_bfloat16(x))
      return at::layer_norm(x, {channels_}, w, b, eps_);
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return at::layer_norm(x.to(at::kBFloat16), {channels_}, w.to(at::kBFloat16), b.to(at::kBFloat16), eps_);
  }

  int64_t channels_;
  double eps_;
};

}  // namespace moecod::layers
