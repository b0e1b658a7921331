#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <vector>

namespace moecod::backbone {

/// Stochastic depth (Huang et al. 2016): in training each image keeps a residual branch with probability 1 - rate,
/// and kept branches are divided by it.
/// Shapes: x [B, ...]. Synchronises: never; draws from the device's default generator.
inline at::Tensor drop_path(const at::Tensor& x, double rate, bool training) {
  if (rate <= 0.0 || !training) return x;
  std::vector<int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
  shape[0] = x.size(0);
  return x.mul(at::empty(shape, x.options()).bernoulli_(1.0 - rate).div_(1.0 - rate));
}

/// The rate of block `index` of `count`: from 0 for the first to `last` for the last, as timm spaces them.
inline double drop_path_rate(double last, int64_t index, int64_t count) {
  return count > 1 ? last * static_cast<double>(index) / static_cast<double>(count - 1) : 0.0;
}

}  // namespace moecod::backbone
