#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <type_traits>
#include <vector>

#include "moecod/core/graphed_calls.hpp"
#include "moecod/core/later.hpp"
#include "moecod/core/recompute.hpp"
#include "moecod/core/tree.hpp"

namespace moecod::experts {

/// One expert's share of a forward pass: the rows it was given (m of them, int64; with Masked dispatch all of them),
/// the gate weights [m] ([N] positions with Masked dispatch by position), and what it returned for them. An expert
/// without rows has empty `rows()` and an output of undefined tensors.
template <class Output>
struct Part {
  Later rows, weights;
  Output output;

  bool empty() const { return rows().numel() == 0; }
};

/// What an expert reads of the mixture's input: all of it, or what its member `input(x)` names. Only the leaves of
/// that tree are gathered.
template <class Expert, class X>
decltype(auto) input_of(const Expert& expert, const X& x) {
  if constexpr (requires { expert.input(x); }) {
    return expert.input(x);
  } else {
    return (x);
  }
}

template <class Expert, class X>
using input_t =
    std::remove_cvref_t<decltype(input_of(std::declval<const Expert&>(), std::declval<const X&>()))>;

template <class Expert, class X>
using output_t = std::remove_cvref_t<decltype(std::declval<Expert&>().forward(std::declval<const input_t<Expert, X>&>()))>;

/// How the experts of a mixture are executed; a base class of every storage of experts.
struct Execution : Graphed {
  bool recompute = false;  ///< compute activations anew in the backward pass instead of keeping them
  /// Also run an expert that has no rows, on none: its layers then take part in what ranks do together, such as
  /// synchronised batch statistics (distributed/synchronise_statistics.hpp).
  bool run_idle = false;

  void record_with(const std::shared_ptr<GraphRecorder>& to) override {
    recorder_ = to;
    calls_.clear();
  }
  /// The calls of expert e, from device graphs where replay_graphs has turned that on.
  GraphedCalls& calls_of(int64_t e) {
    GraphedCalls& out = calls_[e];
    out.recorder = recorder_;
    return out;
  }

 private:
  std::shared_ptr<GraphRecorder> recorder_;
  std::map<int64_t, GraphedCalls> calls_;
};

/// Runs expert e of a mixture, with its activations kept for the backward pass or computed anew there, in which case no
/// device graph is made of it. What an expert does in a member `prepare(in)`, such as calling a shared encoder, is never
/// repeated nor recorded with the rest: it may use parameters that are not the expert's own. `group`: which of a stack.
template <class Expert, class In, class... Group>
auto run(Expert& expert, const In& in, Execution& how, int64_t e, const Group&... group) {
  auto forward = [&expert, group...](const auto& x) { return expert.forward(x, group...); };
  const auto execute = [&](const auto& ready) {
    if (how.recompute) return moecod::recompute(forward, ready, expert.parameters());
    if constexpr (sizeof...(Group) == 0) {
      return how.calls_of(e)(expert, forward, ready);
    } else {
      return forward(ready);
    }
  };
  if constexpr (requires { expert.prepare(in); }) {
    return execute(expert.prepare(in));
  } else {
    return execute(in);
  }
}

}  // namespace moecod::experts
