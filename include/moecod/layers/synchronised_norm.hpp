#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>
#include <tuple>
#include <vector>

#include "moecod/distributed/group.hpp"

namespace moecod::layers::detail {

/// The dimensions of x [M, C, ...] over which a channel's statistics go.
inline std::vector<int64_t> all_but_channels(const at::Tensor& x) {
  std::vector<int64_t> dims(static_cast<std::size_t>(x.dim()));
  std::iota(dims.begin(), dims.end(), 0);
  dims.erase(dims.begin() + 1);
  return dims;
}

/// v [C] in a shape that goes with x [M, C, ...].
inline at::Tensor as_channels(const at::Tensor& v, const at::Tensor& x) {
  std::vector<int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
  shape[1] = v.size(0);
  return v.reshape(shape);
}

/// The statistics of a batch that lies on several ranks: mean and biased variance [C] float32, and the number of values
/// of a channel, a float64 scalar.
struct RankStatistics {
  at::Tensor mean, var, count;
};

/// One message of 2 C + 1 float64 numbers from each rank, also from one without rows. Sums of squares are float64, of
/// means and variances that each rank has taken about its own mean. Synchronises: never.
inline RankStatistics rank_statistics(const at::Tensor& x, distributed::Group& ranks) {
  const int64_t channels = x.size(1);
  const auto wide = x.options().dtype(at::kDouble);
  at::Tensor message = at::zeros({2 * channels + 1}, wide);
  if (x.numel() > 0) {
    const double mine = double(x.numel() / channels);
    const auto [var, mean] = at::var_mean(x.to(at::kFloat), all_but_channels(x), /*unbiased=*/false);
    const at::Tensor m = mean.to(at::kDouble);
    message = at::cat({m * mine, (var.to(at::kDouble) + m.square()) * mine, at::full({1}, mine, wide)});
  }
  ranks.sum(message);
  const at::Tensor count = message.select(0, 2 * channels), n = count.clamp_min(1);
  const at::Tensor mean = message.slice(0, 0, channels) / n;
  const at::Tensor var = (message.slice(0, channels, 2 * channels) / n - mean.square()).clamp_min(0);
  return {mean.to(at::kFloat), var.to(at::kFloat), count};
}

/// (x - mean) / sqrt(var + eps) * weight + bias, where mean and var follow from the x of all ranks if `follow` (0 or 1, a
/// float32 scalar) is 1, and are constants if it is 0. With n values a channel on all ranks together, g the gradient of
/// the output and h = (x - mean) / sqrt(var + eps),
///
///     dx = weight / sqrt(var + eps) * (g - follow * (sum g + h * sum g h) / n),   sums over all ranks,
///
/// while the gradients of weight and bias are this rank's own: whoever averages gradients over ranks does the rest.
struct SynchronisedNorm : torch::autograd::Function<SynchronisedNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& var,
                            const at::Tensor& count, const at::Tensor& follow, double eps, int64_t ranks) {
    ctx->save_for_backward({x, weight, mean, at::rsqrt(var + eps), count, follow});
    ctx->saved_data["ranks"] = ranks;
    return at::batch_norm(x, weight, bias, mean, var, /*training=*/false, 0.0, eps, /*cudnn_enabled=*/true);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &scale = saved[3], &count = saved[4];
    auto& ranks = *reinterpret_cast<distributed::Group*>(ctx->saved_data["ranks"].toInt());
    const at::Tensor g = gradients[0].to(at::kFloat);
    const at::Tensor h = (x.to(at::kFloat) - as_channels(mean, x)) * as_channels(scale, x);
    const std::vector<int64_t> dims = all_but_channels(x);
    const at::Tensor d_bias = g.sum(dims), d_weight = (g * h).sum(dims);
    at::Tensor message = at::cat({d_bias, d_weight}).to(at::kDouble);
    ranks.sum(message);
    const at::Tensor shared = (message / count.clamp_min(1)).to(at::kFloat) * saved[5];
    const int64_t channels = weight.size(0);
    const at::Tensor pull = as_channels(shared.slice(0, 0, channels), x) + h * as_channels(shared.slice(0, channels), x);
    const at::Tensor dx = ((g - pull) * as_channels(weight.to(at::kFloat) * scale, x)).to(x.scalar_type());
    return {dx, d_weight.to(weight.scalar_type()), d_bias.to(weight.scalar_type()), {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace moecod::layers::detail
