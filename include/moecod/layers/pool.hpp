#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "moecod/layers/size_matrix.hpp"

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

/// The windows of adaptive pooling overlap, so LibTorch's CUDA backward adds with atomics; products do not.
struct AveragePoolFunction : torch::autograd::Function<AveragePoolFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t height, int64_t width) {
    ctx->saved_data["height"] = x.size(2);
    ctx->saved_data["width"] = x.size(3);
    return at::adaptive_avg_pool2d(x, {height, width});
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor& g = grads[0];
    const auto matrix = [&](const char* side, int64_t out) {
      return size_matrix(average_matrix, ctx->saved_data[side].toInt(), out, false, g.options());
    };
    const at::Tensor rows = matrix("height", g.size(2)), columns = matrix("width", g.size(3));
    return {at::matmul(rows.t(), at::matmul(g, columns)), {}, {}};
  }
};

struct MaxPoolFunction : torch::autograd::Function<MaxPoolFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t height, int64_t width) {
    auto [out, index] = at::adaptive_max_pool2d(x, {height, width});
    ctx->save_for_backward({x, index});
    return out;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &index = saved[1], &g = grads[0];
    if (x.is_cpu()) return {at::adaptive_max_pool2d_backward(g, x, index), {}, {}};
    // index_put_ with accumulation sorts its indices, so equal ones add in a fixed order.
    const int64_t area = x.size(2) * x.size(3), maps = x.size(0) * x.size(1);
    const at::Tensor map = at::arange(maps, index.options()).view({maps, 1}) * area;
    at::Tensor out = at::zeros({maps * area}, g.options());
    out.index_put_({(index.reshape({maps, -1}) + map).flatten()}, g.reshape({-1}), /*accumulate=*/true);
    return {out.view(x.sizes()), {}, {}};
  }
};

}  // namespace detail

/// Adaptive average pooling to height x width with a deterministic backward.
/// Shapes: x [B, C, H, W] -> [B, C, height, width]. Synchronises: on CUDA in the first backward pass of a pair of sizes only.
inline at::Tensor average_pool(const at::Tensor& x, int64_t height, int64_t width) {
  return detail::AveragePoolFunction::apply(x, height, width);
}

/// Adaptive max pooling to height x width with a deterministic backward.
/// Shapes: x [B, C, H, W] -> [B, C, height, width]. Synchronises: never.
inline at::Tensor max_pool(const at::Tensor& x, int64_t height, int64_t width) {
  return detail::MaxPoolFunction::apply(x, height, width);
}

}  // namespace moecod::layers
