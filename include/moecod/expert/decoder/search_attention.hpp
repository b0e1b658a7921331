#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/sigmoid.h>
#include <torch/nn/module.h>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Search attention: a map, widened by a learnable Gaussian, says where to look again.
///
///     a = sigmoid(map at the size of x)
///     y = x * max(minmax(kernel * a), a),    minmax(b) = (b - min b) / (max b - min b + 1e-8) for each image
///
/// The kernel is 31x31 and starts as a normalised Gaussian of standard deviation 4; positions are those of x.
/// Computed in float32. Shapes: x [n, C, H, W], map [n, 1, H', W'] -> as x. Synchronises: never.
/// Source: Wu et al. 2019 (CPD), arXiv 1904.08739; Fan et al. 2020 (SINet), CVPR.
class SearchAttention : public torch::nn::Module {
 public:
  SearchAttention() {
    const at::Tensor t = at::arange(-15, 16, at::kDouble);
    const at::Tensor line = (-t.square() / (2.0 * 4.0 * 4.0)).exp();
    const at::Tensor square = line.unsqueeze(1) * line.unsqueeze(0);
    kernel = register_parameter("kernel", (square / square.sum()).to(at::kFloat).view({1, 1, 31, 31}));
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& map) {
    const at::Tensor a = at::sigmoid(layers::resize_like(loss::full_precision(map), x));
    const at::Tensor wide = loss::full_precision(at::conv2d(a, kernel, {}, {1, 1}, {15, 15}));
    const at::Tensor low = wide.amin({1, 2, 3}, /*keepdim=*/true), high = wide.amax({1, 2, 3}, /*keepdim=*/true);
    const at::Tensor attention = at::maximum((wide - low) / (high - low + 1e-8), a);
    return x * attention.to(x.scalar_type());
  }

  at::Tensor kernel;
};

}  // namespace moecod::expert::decoder
