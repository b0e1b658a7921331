#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/core/operators.hpp"

namespace moecod {

/// Assignments per expert: experts [N, S] int32 (-1: unused) -> [E] int64. Deterministic, since sums of integers do not
/// depend on their order; does not synchronise.
inline at::Tensor count_assignments(const at::Tensor& experts, int64_t num_experts) {
  const at::Tensor index = experts.reshape({-1}).to(at::kLong);
  const at::Tensor used = index.ge(0).to(at::kLong);
  return at::zeros({num_experts}, used.options()).scatter_add(0, index.clamp_min(0), used);
}

/// Who gets which row, and how much each answer counts.
///
/// N rows, E experts, S slots a row (K for TopK, E for Dense and ExpertChoice). An unused slot is expert -1 with
/// weight 0. `assignments`, the number of used slots, is known on the host, so nothing that follows has to ask the
/// device. Floating-point members are float32, or float64 when the router is.
struct Routing {
  at::Tensor logits;   ///< [N, E], the router's, before any bias; undefined in a given routing
  at::Tensor scores;   ///< [N, E], of the logits with the policy's logit bias; undefined in a given routing
  at::Tensor experts;  ///< [N, S] int32
  at::Tensor weights;  ///< [N, S]
  at::Tensor counts;   ///< [E] int64, assignments per expert
  int64_t assignments = 0;

  /// The expert that has the most say in each row, [N] int64; ties go to the lower slot. Does not synchronise.
  at::Tensor first_choice() const {
    // A stable sort keeps equal weights in the order of their slots; argmax does not promise that.
    const at::Tensor order = std::get<1>(at::sort(weights.detach(), /*stable=*/true, /*dim=*/1, /*descending=*/true));
    return experts.to(at::kLong).gather(1, order.slice(1, 0, 1)).squeeze(1);
  }

  /// The gate weights as [N, E], zero where an expert was not chosen. Does not synchronise.
  at::Tensor dense_weights() const {
    // Unused slots have weight 0, so that they land on expert 0 changes nothing.
    return at::zeros({rows(), num_experts()}, weights.options())
        .scatter_add(1, experts.to(at::kLong).clamp_min(0), weights);
  }

  int64_t rows() const { return experts.size(0); }
  int64_t slots() const { return experts.size(1); }
  int64_t num_experts() const { return counts.size(0); }

  /// A routing made elsewhere: any pair of experts [N, S] (integers in [-1, E)) and weights [N, S].
  /// Synchronises: reads the number of used slots and the range of the indices.
  /// Errors: c10::Error on shapes that differ, an index out of range, or no used slot at all.
  static Routing given(const at::Tensor& experts, const at::Tensor& weights, int64_t num_experts) {
    TORCH_CHECK(experts.dim() == 2 && experts.sizes() == weights.sizes(),
                "Routing::given: experts and weights must both be [N, S], got ", experts.sizes(), " and ",
                weights.sizes());
    TORCH_CHECK(experts.numel() > 0 && experts.min().item<int64_t>() >= -1 &&
                    experts.max().item<int64_t>() < num_experts,
                "Routing::given: experts must lie in [-1, ", num_experts, "), got values outside, or none");
    Routing routing;
    routing.experts = experts.to(at::kInt);
    const at::Tensor used = routing.experts.ge(0);
    routing.weights = at::where(used, weights, at::zeros({}, weights.options()));
    routing.counts = count_assignments(routing.experts, num_experts);
    routing.assignments = used.sum().item<int64_t>();
    TORCH_CHECK(routing.assignments > 0, "Routing::given: at least one slot must be used, got only -1");
    return routing;
  }

  /// Every row to one expert, with weight 1. Does not synchronise.
  static Routing to(int64_t expert, int64_t rows, int64_t num_experts, at::Device device = at::kCPU) {
    TORCH_CHECK(0 <= expert && expert < num_experts, "Routing::to: expert must lie in [0, ", num_experts, "), got ",
                expert);
    Routing routing;
    routing.experts = at::full({rows, 1}, expert, at::TensorOptions().dtype(at::kInt).device(device));
    routing.weights = at::full({rows, 1}, 1.0, at::TensorOptions().dtype(at::kFloat).device(device));
    routing.counts = count_assignments(routing.experts, num_experts);
    routing.assignments = rows;
    return routing;
  }

  /// Every row to the experts listed, with equal weights. Does not synchronise.
  static Routing to(const std::vector<int64_t>& experts, int64_t rows, int64_t num_experts,
                    at::Device device = at::kCPU) {
    TORCH_CHECK(!experts.empty(), "Routing::to: expected at least one expert");
    std::vector<at::Tensor> columns, weights;
    for (int64_t expert : experts) {
      Routing one = to(expert, rows, num_experts, device);
      columns.push_back(one.experts);
      weights.push_back(one.weights / static_cast<double>(experts.size()));
    }
    Routing routing;
    routing.experts = at::cat(columns, 1);
    routing.weights = at::cat(weights, 1);
    routing.counts = count_assignments(routing.experts, num_experts);
    routing.assignments = rows * static_cast<int64_t>(experts.size());
    return routing;
  }

  /// Every row to every expert, with weights 1/E. Does not synchronise.
  static Routing all(int64_t rows, int64_t num_experts, at::Device device = at::kCPU) {
    std::vector<int64_t> experts(num_experts);
    for (int64_t e = 0; e < num_experts; ++e) experts[e] = e;
    return to(experts, rows, num_experts, device);
  }
};

namespace detail {

/// order, offsets and position of a plan, of LibTorch's operations. experts [N, S], counts [E].
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> plan(const at::Tensor& experts, const at::Tensor& counts,
                                                           int64_t assignments) {
  const at::Tensor flat = experts.reshape({-1});
  const at::Tensor key = at::where(flat.ge(0), flat, at::full({}, counts.size(0), flat.options()));
  const at::Tensor sorted = std::get<1>(at::sort(key, /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const at::Tensor rank = at::zeros_like(sorted).scatter_(0, sorted, at::arange(sorted.numel(), sorted.options()));
  return {sorted.slice(0, 0, assignments).to(at::kInt),
          at::cat({at::zeros({1}, counts.options()), counts.cumsum(0)}).to(at::kInt),
          at::where(flat.ge(0), rank, at::full({}, -1, rank.options())).view_as(experts).to(at::kInt)};
}

}  // namespace detail

/// The used slots sorted by expert, ties by slot. M = routing.assignments, E experts.
///
/// Made on the routing's device, of stable sorts and cumulative sums or by the operator of `moecod::cuda`:
/// deterministic, and it does not synchronise.
struct Plan {
  at::Tensor order;     ///< [M] int32: slot n*S + s of each sorted assignment
  at::Tensor offsets;   ///< [E + 1] int32: assignments of expert e are offsets[e] to offsets[e + 1]
  at::Tensor position;  ///< [N, S] int32: where slot (n, s) was sorted to, -1 for an unused one
  int64_t slots = 1;    ///< S

  explicit Plan(const Routing& routing) : slots(routing.slots()) {
    TORCH_CHECK(routing.experts.numel() <= std::numeric_limits<int32_t>::max(), "Plan: at most 2^31 - 1 slots, got ",
                routing.experts.numel());
    const auto* plan = operators::find_for<operators::Plan>(routing.experts);
    std::tie(order, offsets, position) =
        plan ? plan->call(routing.experts, routing.num_experts(), routing.assignments)
             : detail::plan(routing.experts, routing.counts, routing.assignments);
  }

  int64_t assignments() const { return order.size(0); }

  /// The row of each sorted assignment, [M] int64.
  at::Tensor rows() const { return rows_of(order, slots); }
  static at::Tensor rows_of(const at::Tensor& order, int64_t slots) { return order.to(at::kLong).floor_divide(slots); }
  /// The weight of each sorted assignment, [M], of weights [N, S].
  static at::Tensor weights_of(const at::Tensor& order, const at::Tensor& weights) {
    return weights.reshape({-1}).index_select(0, order.to(at::kLong));
  }
};

}  // namespace moecod
