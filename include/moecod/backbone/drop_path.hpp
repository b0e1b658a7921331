#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstddef>
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

/// drop_path_rate of every block, stage by stage.
/// Errors: c10::Error that starts with `owner` for a last rate outside [0, 1).
template <std::size_t Stages>
std::array<std::vector<double>, Stages> drop_path_rates(const char* owner, double last,
                                                        const std::array<int64_t, Stages>& depths) {
  TORCH_CHECK(last >= 0.0 && last < 1.0, owner, ": drop_path must be in [0, 1), got ", last);
  std::array<std::vector<double>, Stages> out;
  int64_t index = 0, count = 0;
  for (const int64_t depth : depths) count += depth;
  for (std::size_t i = 0; i < Stages; ++i)
    for (int64_t j = 0; j < depths[i]; ++j) out[i].push_back(drop_path_rate(last, index++, count));
  return out;
}

}  // namespace moecod::backbone
