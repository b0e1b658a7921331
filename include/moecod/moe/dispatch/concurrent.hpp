#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/side_stream.hpp"
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::dispatch {

namespace detail {

/// Runs experts, each on a stream of its own which begins where the current one is; on a CPU one after the other.
class SideBySide {
 public:
  explicit SideBySide(at::Device device) : device_(device) {}

  template <class RunExpert, class Rows>
  auto operator()(RunExpert& run_expert, const Rows& rows) {
    if (!device_.is_cuda()) return run_expert(rows);
    const c10::Stream home = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    const c10::Stream side = side_stream(device_, 1 + ends_.size());
    c10::Event begin(device_.type());
    begin.record(home);
    begin.block(side);
    // Memory goes back to the stream that it came from, which must not hand it out while the other one uses it.
    for (const at::Tensor& leaf : tree::leaves(rows)) leaf.record_stream(side);
    const c10::StreamGuard guard(side);
    // Nor may a cast of a parameter that was made on one stream be used on another.
    AutocastState uncached = AutocastState::current(device_.type());
    uncached.cache = false;
    const AutocastGuard autocast(uncached);
    auto out = run_expert(rows);
    for (const at::Tensor& leaf : tree::leaves(out)) leaf.record_stream(home);
    ends_.emplace_back(device_.type()).record(side);
    return out;
  }

  /// The current stream goes on when all are through.
  void join() {
    for (c10::Event& end : ends_) end.block(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
    ends_.clear();
  }

 private:
  at::Device device_;
  std::vector<c10::Event> ends_;
};

}  // namespace detail

/// As Batched, with all experts at the same time: for experts of different kinds that leave parts of a GPU idle, each
/// on a stream of its own, forward and backward. Under replay_graphs (core/graphed_calls.hpp) the host needs a few
/// launches for each, so that they really overlap.
///
/// Synchronises: once a forward, to read how many rows each expert has. Memory: as Batched, but no expert uses what
/// another let go.
struct Concurrent {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = false;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    return execute(experts, x, routing, detail::SideBySide(routing.weights.device()));
  }
};

}  // namespace moecod::dispatch
