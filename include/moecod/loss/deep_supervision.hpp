#pragma once
#include <vector>

#include "moecod/layers/resize.hpp"
#include "moecod/loss/inputs.hpp"

namespace moecod::loss {

/// Deep supervision: the sum of loss(map, target) over a final map and side outputs, each upsampled to the target.
///
/// Shapes: logits [n, 1, H', W']; side[i] [n, 1, H_i, W_i]; target [n, 1, H, W]; loss(logits, target) -> [n]. -> [n].
/// Synchronises: never by itself. Errors: c10::Error when a map is not [n, 1, H, W].
template <class Loss>
at::Tensor deep_supervision(const at::Tensor& logits, const std::vector<at::Tensor>& side, const at::Tensor& target,
                            Loss&& loss) {
  check_map("deep_supervision", "target", target);
  const auto of = [&](const at::Tensor& map) {
    check_map("deep_supervision", "map", map);
    return loss(layers::resize_like(full_precision(map), target), target);
  };
  at::Tensor total = of(logits);
  for (const at::Tensor& map : side) total = total + of(map);
  return total;
}

}  // namespace moecod::loss
