#pragma once
#include <ATen/ops/cat.h>

#include <tuple>
#include <vector>

#include "moecod/core/zero_gradients.hpp"
#include "moecod/moe/combine.hpp"
#include "moecod/moe/experts/run.hpp"

/// What dispatchers share.
namespace moecod::dispatch {

/// What a dispatcher returns: the combined rows, and each expert's share.
template <class Parts>
struct Executed {
  at::Tensor y;
  Parts parts;
};

namespace detail {

/// Calls f for each part, of a tuple (Distinct) or a vector (Replicated before joining).
template <class Parts, class F>
void for_each_part(Parts& parts, F&& f) {
  if constexpr (tree::product<Parts>) {
    std::apply([&](auto&... part) { (f(part), ...); }, parts);
  } else {
    for (auto& part : parts) f(part);
  }
}

template <class Parts>
auto& first_part(Parts& parts) {
  if constexpr (tree::product<Parts>) {
    return std::get<0>(parts);
  } else {
    return parts.front();
  }
}

/// Zero gradients for the experts without rows, whichever of the other experts' outputs the loss looks at: for their
/// parameters, or for the outputs of those that ran on no rows all the same.
template <class Experts, class Parts>
void attach_idle(const Experts& experts, Parts& parts) {
  std::vector<at::Tensor> idle;
  int64_t e = 0;
  for_each_part(parts, [&](auto& part) {
    if (part.empty())
      for (const at::Tensor& tensor : experts.run_idle ? tree::leaves(part.output) : experts.parameters_of(e))
        idle.push_back(tensor);
    ++e;
  });
  for_each_part(parts, [&](auto& part) {
    if (!part.empty()) tree::primary(part.output) = with_zero_gradients(tree::primary(part.output), idle);
  });
}

}  // namespace detail

/// Runs each expert by `run(run one expert, its gathered rows)` and combines the primary outputs, behind `run.join()`
/// if there is such a thing.
///
/// Synchronises: reads the E + 1 offsets back once.
template <class Experts, class X, class Run>
auto execute(Experts& experts, const X& x, const Routing& routing, Run&& run) {
  const Plan plan(routing);
  const at::Tensor rows = plan.rows();
  const at::Tensor weights = Plan::weights_of(plan.order, routing.weights);
  const at::Tensor host = plan.offsets.to(at::kCPU);
  const int32_t* bounds = host.const_data_ptr<int32_t>();
  auto parts = experts.visit(x, [&](int64_t e, const auto& input, auto&& run_expert) {
    using Output = std::remove_cvref_t<decltype(run_expert(input))>;
    experts::Part<Output> part{rows.slice(0, bounds[e], bounds[e + 1]), weights.slice(0, bounds[e], bounds[e + 1]), {}};
    // Without any row the first expert runs on none, for the shape of the output.
    if (!part.empty() || experts.run_idle || (e == 0 && routing.assignments == 0))
      part.output = run(run_expert, gather(input, plan, bounds[e], bounds[e + 1]));
    return part;
  });
  if constexpr (requires { run.join(); }) run.join();
  detail::attach_idle(experts, parts);
  std::vector<at::Tensor> primary;
  detail::for_each_part(parts, [&](auto& part) {
    if (!part.empty()) primary.push_back(tree::primary(part.output));
  });
  if (primary.empty()) primary.push_back(tree::primary(detail::first_part(parts).output));
  const at::Tensor y = combine(primary.size() == 1 ? primary.front() : at::cat(primary), routing.weights, plan);
  auto joined = Experts::join(parts);
  return Executed<decltype(joined)>{y, std::move(joined)};
}

}  // namespace moecod::dispatch
