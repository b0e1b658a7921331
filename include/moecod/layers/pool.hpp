#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "moecod/core/operators.hpp"
#include "moecod/layers/band.hpp"
#include "moecod/layers/gradient_format.hpp"
#include "moecod/layers/size_tensor.hpp"

namespace moecod::layers {

namespace detail {

/// Row i averages the samples floor(i in/out) to ceil((i+1) in/out).
inline at::Tensor average_matrix(int64_t in, int64_t out, bool /*variant*/ = false) {
  at::Tensor matrix = at::zeros({out, in}, at::kDouble);
  for (int64_t i = 0; i < out; ++i) {
    const int64_t begin = i * in / out, end = ((i + 1) * in + out - 1) / out;
    matrix.select(0, i).slice(0, begin, end).fill_(1.0 / double(end - begin));
  }
  return matrix;
}

inline at::Tensor average_band(int64_t in, int64_t out, bool /*variant*/) { return band_of(average_matrix(in, out)); }

/// The same with 1 for every weight: which outputs look at a sample.
inline at::Tensor window_band(int64_t in, int64_t out, bool /*variant*/) {
  return band_of(average_matrix(in, out).gt(0).to(at::kDouble));
}

/// The gradient of a map [B, C, height, width] that was pooled to averages. The windows of adaptive pooling overlap, so
/// LibTorch's CUDA backward adds with atomics; products do not.
inline at::Tensor average_pool_backward(const at::Tensor& grad, int64_t height, int64_t width) {
  const at::Tensor rows = size_tensor(average_matrix, height, grad.size(2), false, grad.options());
  const at::Tensor columns = size_tensor(average_matrix, width, grad.size(3), false, grad.options());
  return at::matmul(rows.t(), at::matmul(grad, columns));
}

/// The same of maxima, whose places in the map `index` names. index_put_ with accumulation sorts its indices, so equal
/// ones add in a fixed order.
inline at::Tensor max_pool_backward(const at::Tensor& grad, const at::Tensor& index, int64_t height, int64_t width) {
  if (grad.is_cpu()) {  // takes no more than sizes from the map
    const at::Tensor sizes = at::empty({}, grad.options()).expand({grad.size(0), grad.size(1), height, width});
    return at::adaptive_max_pool2d_backward(grad, sizes, index);
  }
  const int64_t area = height * width, maps = grad.size(0) * grad.size(1);
  const at::Tensor map = at::arange(maps, index.options()).view({maps, 1}) * area;
  at::Tensor out = at::zeros({maps * area}, grad.options());
  out.index_put_({(index.reshape({maps, -1}) + map).flatten()}, grad.reshape({-1}), /*accumulate=*/true);
  return out.view({grad.size(0), grad.size(1), height, width});
}

struct AveragePoolFunction : torch::autograd::Function<AveragePoolFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t height, int64_t width) {
    ctx->saved_data["height"] = x.size(2);
    ctx->saved_data["width"] = x.size(3);
    ctx->saved_data["format"] = static_cast<int64_t>(x.suggest_memory_format());
    return at::adaptive_avg_pool2d(x, {height, width});
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor grad = in_format(grads[0], static_cast<at::MemoryFormat>(ctx->saved_data["format"].toInt()));
    const int64_t height = ctx->saved_data["height"].toInt(), width = ctx->saved_data["width"].toInt();
    const auto* op = operators::find_for<operators::AveragePoolBackward>(grad);
    return {op ? op->call(grad, height, width) : average_pool_backward(grad, height, width), {}, {}};
  }
};

struct MaxPoolFunction : torch::autograd::Function<MaxPoolFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t height, int64_t width) {
    auto [out, index] = at::adaptive_max_pool2d(x, {height, width});
    ctx->save_for_backward({index});
    ctx->saved_data["height"] = x.size(2);
    ctx->saved_data["width"] = x.size(3);
    ctx->saved_data["format"] = static_cast<int64_t>(x.suggest_memory_format());
    return out;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto format = static_cast<at::MemoryFormat>(ctx->saved_data["format"].toInt());
    const at::Tensor grad = in_format(grads[0], format), index = in_format(ctx->get_saved_variables()[0], format);
    const int64_t height = ctx->saved_data["height"].toInt(), width = ctx->saved_data["width"].toInt();
    const auto* op = operators::find_for<operators::MaxPoolBackward>(grad);
    return {op ? op->call(grad, index, height, width) : max_pool_backward(grad, index, height, width), {}, {}};
  }
};

}  // namespace detail

/// Adaptive average pooling to height x width with a deterministic backward.
/// Shapes: x [B, C, H, W] -> [B, C, height, width]. Synchronises: on CUDA in the first
/// backward pass of a pair of sizes.
inline at::Tensor average_pool(const at::Tensor& x, int64_t height, int64_t width) {
  return detail::AveragePoolFunction::apply(x, height, width);
}

/// Adaptive max pooling to height x width with a deterministic backward.
/// Shapes: x [B, C, H, W] -> [B, C, height, width]. Synchronises: as average_pool, where the kernels are there.
inline at::Tensor max_pool(const at::Tensor& x, int64_t height, int64_t width) {
  return detail::MaxPoolFunction::apply(x, height, width);
}

}  // namespace moecod::layers
