#pragma once
#include <ATen/ops/arange.h>
#include <ATen/ops/softmax.h>

#include "moecod/moe/routing.hpp"

namespace moecod::bench {

/// A router's decision with other experts in its place: row n to experts slots n, slots n + 1, ... modulo their number, so
/// that each gets as many wherever that is possible, weighted by the router's softmax over them.
inline Routing balanced(Routing routing, int64_t experts, int64_t slots) {
  const at::Tensor logits = routing.logits;
  const int64_t rows = logits.size(0);
  const auto longs = logits.options().dtype(at::kLong);
  const at::Tensor chosen = at::arange(rows * slots, longs).remainder(experts).view({rows, slots});
  routing.experts = chosen.to(at::kInt);
  routing.weights = at::softmax(logits.gather(1, chosen), 1);
  routing.counts = count_assignments(routing.experts, experts);
  routing.assignments = rows * slots;
  return routing;
}

}  // namespace moecod::bench
