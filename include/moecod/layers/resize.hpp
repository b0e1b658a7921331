#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_bilinear2d_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "moecod/core/operators.hpp"
#include "moecod/layers/band.hpp"
#include "moecod/layers/size_tensor.hpp"

namespace moecod::layers {

namespace detail {

/// Row i holds the weights with which bilinear interpolation makes sample i of `out` from `in` samples.
inline at::Tensor bilinear_matrix(int64_t in, int64_t out, bool align_corners) {
  at::Tensor matrix = at::zeros({out, in}, at::kDouble);
  auto m = matrix.accessor<double, 2>();
  for (int64_t i = 0; i < out; ++i) {
    const double scale = align_corners ? (out > 1 ? double(in - 1) / double(out - 1) : 0.0) : double(in) / double(out);
    const double at = align_corners ? scale * double(i) : std::max(0.0, scale * (double(i) + 0.5) - 0.5);
    const int64_t low = std::min<int64_t>(static_cast<int64_t>(at), in - 1);
    const int64_t high = std::min<int64_t>(low + 1, in - 1);
    const double t = at - double(low);
    m[i][low] += 1.0 - t;
    m[i][high] += t;
  }
  return matrix;
}

/// The samples of `out` that each of `in` is a part of.
inline at::Tensor bilinear_band(int64_t in, int64_t out, bool align_corners) {
  return band_of(bilinear_matrix(in, out, align_corners));
}

/// The samples of `in` that each of `out` is made of.
inline at::Tensor bilinear_parts(int64_t in, int64_t out, bool align_corners) {
  return band_of(bilinear_matrix(in, out, align_corners).t());
}

/// The gradient of a map [B, C, height, width] that was resized, from that of the result. LibTorch's backward of this
/// operation adds with atomics on CUDA, in an order that changes from run to run; two matrix products give the same
/// gradient in a fixed order.
inline at::Tensor resize_backward(const at::Tensor& grad, int64_t height, int64_t width, bool align_corners) {
  if (grad.is_cpu())
    return at::upsample_bilinear2d_backward(grad, {grad.size(2), grad.size(3)},
                                            {grad.size(0), grad.size(1), height, width}, align_corners);
  const at::Tensor rows = size_tensor(bilinear_matrix, height, grad.size(2), align_corners, grad.options());
  const at::Tensor columns = size_tensor(bilinear_matrix, width, grad.size(3), align_corners, grad.options());
  return at::matmul(rows.t(), at::matmul(grad, columns));
}

struct ResizeFunction : torch::autograd::Function<ResizeFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t height, int64_t width,
                            bool align_corners) {
    ctx->saved_data["height"] = x.size(2);
    ctx->saved_data["width"] = x.size(3);
    ctx->saved_data["align_corners"] = align_corners;
    // Autocast would run it in float32, whatever went in; it sums in float32 anyway.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto* op = operators::find_for<operators::Resize>(x);
    return op ? op->call(x, height, width, align_corners) : at::upsample_bilinear2d(x, {height, width}, align_corners);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor& grad = grads[0];
    const int64_t height = ctx->saved_data["height"].toInt(), width = ctx->saved_data["width"].toInt();
    const bool align_corners = ctx->saved_data["align_corners"].toBool();
    const auto* op = operators::find_for<operators::ResizeBackward>(grad);
    return {op ? op->call(grad, height, width, align_corners) : resize_backward(grad, height, width, align_corners),
            {}, {}, {}};
  }
};

}  // namespace detail

/// Bilinear resampling of feature maps, with a backward whose result does not depend on the order of additions.
///
/// Shapes: x [B, C, H, W] -> [B, C, height, width], of x's dtype, also under autocast. Synchronises: on CUDA the first time
/// that a pass sees a pair of sizes (size_tensor.hpp).
inline at::Tensor resize(const at::Tensor& x, int64_t height, int64_t width, bool align_corners = false) {
  if (x.size(2) == height && x.size(3) == width) return x;
  return detail::ResizeFunction::apply(x, height, width, align_corners);
}

/// x resized to the height and width of `like`.
inline at::Tensor resize_like(const at::Tensor& x, const at::Tensor& like, bool align_corners = false) {
  return resize(x, like.size(2), like.size(3), align_corners);
}

/// x resized by a factor, the new size rounded down.
inline at::Tensor scale(const at::Tensor& x, double factor, bool align_corners = false) {
  return resize(x, static_cast<int64_t>(std::floor(double(x.size(2)) * factor)),
                static_cast<int64_t>(std::floor(double(x.size(3)) * factor)), align_corners);
}

}  // namespace moecod::layers
