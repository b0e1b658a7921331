#pragma once
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/core/state.hpp"
#include "moecod/layers/stack.hpp"
#include "moecod/moe/experts/run.hpp"
#include "moecod/moe/experts/spread.hpp"
#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"

namespace moecod {

/// An expert written over `template <class Layers>`, so that n of them can share one set of stacked tensors.
template <class Expert>
concept rebindable = requires { typename Expert::template rebind<layers::Stacked>; };

namespace detail {

template <class Output>
experts::Part<Output> join_parts(const std::vector<experts::Part<Output>>& parts) {
  std::vector<at::Tensor> rows, weights;
  std::vector<Output> outputs;
  for (const auto& part : parts) {
    if (part.empty()) continue;
    rows.push_back(part.rows());
    weights.push_back(part.weights());
    outputs.push_back(part.output);
  }
  if (outputs.empty()) return parts.front();
  return {at::cat(rows), at::cat(weights), tree::cat(outputs)};
}

}  // namespace detail

/// N experts of one kind, each initialised on its own.
///
/// A rebindable expert is stored stacked, under every dispatcher: every parameter is [N, ...], and Sequential and
/// Batched run one slice of it. Any other module is stored N times. Files hold one expert a key (`experts.3.conv1.weight`)
/// either way. Stacked experts start bitwise equal to N single ones made one after another from the same seed.
template <class Expert, int64_t N>
class Replicated : public torch::nn::Module, public experts::Execution {
  static_assert(N >= 1, "moecod: Replicated<Expert, N> needs N >= 1");

 public:
  using policy_kind = kind::experts;
  using rows = typename Expert::rows;
  using Options = typename Expert::Options;
  static constexpr int64_t count = N;
  static constexpr bool stacked = false;
  template <class X>
  using parts = experts::Part<experts::output_t<Expert, X>>;

  explicit Replicated(const Options& options = {}) {
    for (int64_t e = 0; e < N; ++e)
      experts_.push_back(register_module(std::to_string(e), std::make_shared<Expert>(options)));
  }

  /// Calls f(e, input of x, run) for each expert, where run(input) runs it; returns the results in order.
  template <class X, class F>
  auto visit(const X& x, F&& f) {
    std::vector<parts<X>> out;
    for (int64_t e = 0; e < N; ++e)
      out.push_back(f(e, experts::input_of(*experts_[e], x),
                      [&](const auto& in) { return experts::run(*experts_[e], in, *this, e); }));
    return out;
  }

  template <class Output>
  static auto join(const std::vector<experts::Part<Output>>& all) {
    return detail::join_parts(all);
  }

  /// The parameters that have no gradient in a step in which expert e has no rows.
  std::vector<at::Tensor> parameters_of(int64_t e) const { return experts_[e]->parameters(); }

  Expert& operator[](int64_t e) { return *experts_.at(e); }

 private:
  std::vector<std::shared_ptr<Expert>> experts_;
};

template <class Expert, int64_t N>
  requires rebindable<Expert>
class Replicated<Expert, N> : public torch::nn::Module, public experts::Spread, public experts::Execution {
  static_assert(N >= 1, "moecod: Replicated<Expert, N> needs N >= 1");

 public:
  using policy_kind = kind::experts;
  using rows = typename Expert::rows;
  using Options = typename Expert::Options;
  using Stack = typename Expert::template rebind<layers::Stacked>;
  static_assert(std::is_same_v<typename Stack::Options, Options>,
                "moecod: Replicated<Expert, N>: the expert's Options must be one type for every Layers; declare the "
                "struct outside the template");
  using Group = layers::Stacked::Group;
  static constexpr int64_t count = N;
  static constexpr bool stacked = true;
  template <class X>
  using parts = experts::Part<experts::output_t<Expert, X>>;

  explicit Replicated(const Options& options = {}) {
    stack_ = register_module("stack", std::make_shared<Stack>(options, layers::Stacked{N}));
    torch::NoGradGuard no_grad;
    for (int64_t e = 0; e < N; ++e) {
      const Expert single(options);
      const auto from = single.named_parameters();
      for (auto& item : stack_->named_parameters()) item.value().select(0, e).copy_(from[item.key()]);
      const auto buffers = single.named_buffers();
      for (auto& item : stack_->named_buffers()) item.value().select(0, e).copy_(buffers[item.key()]);
    }
  }

  int64_t stack_size() const override { return held_; }
  int64_t first_expert() const override { return first_; }

  void hold(int64_t first, int64_t count, const std::function<at::Tensor(const at::Tensor&)>& each) override {
    const torch::NoGradGuard no_grad;
    for (at::Tensor& parameter : stack_->parameters()) {
      parameter.mutable_grad() = at::Tensor();
      parameter.set_data(each(parameter));
      // A graph that somebody still holds keeps a node that expects gradients of the old shape.
      torch::autograd::impl::set_grad_accumulator(parameter, {});
    }
    for (at::Tensor& buffer : stack_->buffers()) buffer.set_data(each(buffer));
    first_ = first;
    held_ = count;
  }

  /// Calls f(e, input of x, run) for each expert held here, where run(input) runs it; returns the results in order.
  template <class X, class F>
  auto visit(const X& x, F&& f) {
    std::vector<parts<X>> out;
    for (int64_t e = 0; e < held_; ++e)
      out.push_back(f(e, experts::input_of(*stack_, x),
                      [&](const auto& in) { return experts::run(*stack_, in, *this, e, Group::one(e)); }));
    return out;
  }

  template <class Output>
  static auto join(const std::vector<experts::Part<Output>>& all) {
    return detail::join_parts(all);
  }

  /// Runs the experts held here together on rows sorted by expert; offsets [their number + 1] int32.
  template <class X>
  auto run_sorted(const X& sorted, const at::Tensor& offsets) {
    return experts::run(*stack_, sorted, *this, 0, Group::sorted(offsets));
  }

  /// Sorts the rows of x, runs the experts held here together and combines their rows, for experts that do all of it at once,
  /// where they do (their forward_dispatched).
  template <class X>
  auto run_dispatched(const X& x, const Plan& plan, const at::Tensor& weights)
    requires requires(Stack& stack, Group group) {
      stack.forward_dispatched(x, group, weights, plan.order, plan.position);
      requires !requires { stack.prepare(x); };
    }
  {
    const Group group = Group::sorted(plan.offsets);
    using Both = decltype(stack_->forward_dispatched(x, group, weights, plan.order, plan.position));
    return recompute && at::GradMode::is_enabled() ? Both() : stack_->forward_dispatched(x, group, weights, plan.order, plan.position);
  }

  template <class X>
  decltype(auto) input(const X& x) const {
    return experts::input_of(*stack_, x);
  }

  /// None: a stacked parameter gets its gradient whole, with zeros for the experts without rows.
  std::vector<at::Tensor> parameters_of(int64_t) const { return {}; }

  Stack& stack() { return *stack_; }

 private:
  std::shared_ptr<Stack> stack_;
  int64_t first_ = 0, held_ = N;
};

}  // namespace moecod
