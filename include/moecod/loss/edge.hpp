#pragma once
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "moecod/layers/resize.hpp"
#include "moecod/loss/dice.hpp"

namespace moecod::loss {

/// The edge of a mask: its morphological gradient, dilation minus erosion by a square of 2 radius + 1 pixels.
///
/// Pixels outside the picture count for neither, so an object that leaves the picture has no edge at the border.
/// Shapes: mask in [0, 1], [n, 1, H, W] -> the same, without gradient. radius >= 1, in pixels. Synchronises: never.
/// Errors: c10::Error on other shapes.
inline at::Tensor edge_target(const at::Tensor& mask, int64_t radius = 1) {
  check_map("edge_target", "mask", mask);
  TORCH_CHECK(radius >= 1, "loss::edge_target: radius must be at least 1, got ", radius);
  const at::Tensor m = full_precision(mask.detach());
  const int64_t side = 2 * radius + 1;
  const auto dilate = [&](const at::Tensor& x) { return at::max_pool2d(x, {side, side}, {1, 1}, {radius, radius}); };
  return dilate(m) + dilate(-m);
}

/// Dice loss of several edge maps, coarse to fine, against the edge of the mask: sum_i weights[i] dice(edges[i], e).
///
/// Shapes: edges[i] logits [n, 1, H_i, W_i], resized to the mask's size; mask [n, 1, H, W] -> [n].
/// Synchronises: never. Errors: c10::Error on other shapes or when the numbers of maps and weights differ.
/// Source: He et al. 2023 (FEDER), CVPR; weights 1/8, 1/4, 1/2.
inline at::Tensor edge(const std::vector<at::Tensor>& edges, const at::Tensor& mask,
                       const std::vector<double>& weights = {0.125, 0.25, 0.5}) {
  TORCH_CHECK(edges.size() == weights.size(), "loss::edge: expected one weight a map, got ", edges.size(),
              " maps and ", weights.size(), " weights");
  const at::Tensor target = edge_target(mask);
  at::Tensor total = at::zeros({mask.size(0)}, target.options());
  for (std::size_t i = 0; i < edges.size(); ++i) {
    check_map("edge", "edges[i]", edges[i]);
    total = total + weights[i] * dice(layers::resize_like(full_precision(edges[i]), target), target);
  }
  return total;
}

}  // namespace moecod::loss
