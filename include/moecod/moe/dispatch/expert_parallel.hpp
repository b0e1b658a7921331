#pragma once
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/distributed/group.hpp"
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod {

namespace detail {

/// Rows sent to the ranks that need them; backward sends the gradients home, times `scale`. `group` outlives the graph.
struct ExchangeFunction : torch::autograd::Function<ExchangeFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, distributed::Group* group,
                            const std::vector<int64_t>& send, const std::vector<int64_t>& receive, double scale) {
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["group"] = reinterpret_cast<int64_t>(group);
    ctx->saved_data["send"] = send;
    ctx->saved_data["receive"] = receive;
    return group->exchange(rows, send, receive);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    auto* group = reinterpret_cast<distributed::Group*>(ctx->saved_data["group"].toInt());
    const at::Tensor home = group->exchange(gradients[0], ctx->saved_data["receive"].toIntVector(),
                                            ctx->saved_data["send"].toIntVector());
    return {home * ctx->saved_data["scale"].toDouble(), {}, {}, {}, {}};
  }
};

}  // namespace detail

namespace dispatch {

/// Experts spread over ranks: each rank sends its rows to those that hold their experts, which run them by `Inner` and
/// send the results back. No row is dropped. Needs stacked storage (Replicated, a rebindable expert).
///
/// distributed::spread_experts gives each rank of W its E / W experts; before that, and after gather_experts, this is
/// Inner on all of them. An expert sees the rows of all ranks in the order of the ranks, so that outputs, gradients and batch
/// statistics are those of one process with the whole batch. All ranks must run the same mixtures in the same order.
///
/// `parts` are those of the rows that this rank's experts were sent. Synchronises: once a forward, to read how many rows each
/// rank has for each expert, and as Inner does. Messages: W E numbers; M rows there and M back, and as much again in
/// the backward pass.
template <class Inner>
struct ExpertParallel {
  using policy_kind = kind::dispatch;
  static constexpr bool needs_stacked = true;
  static constexpr bool position_weights = false;
  static constexpr bool spreads_experts = true;
  static_assert(!Inner::position_weights,
                "moecod: dispatch::ExpertParallel<Inner>: Inner must run an expert's own rows only, as dispatch::Grouped and "
                "dispatch::Batched do");

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const Routing& routing) {
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(experts.input(x))>, X>,
                  "moecod: dispatch::ExpertParallel sends the mixture's whole input; the experts must read all of it");
    if (!experts.ranks) return Inner::run(experts, x, routing);
    distributed::Group& group = *experts.ranks;
    const Plan plan(routing);
    const Sizes sizes(group, routing.counts, experts.first_expert(), experts.stack_size());
    // Each rank's loss is the mean over its own rows: a parameter here gets the gradients of W losses, and is to get their
    // mean. So gradients are divided by W on their way into the experts and multiplied by it on their way out.
    const double world = double(group.world());
    const X received = tree::map(
        [&](const at::Tensor& leaf) {
          return moecod::detail::ExchangeFunction::apply(leaf, &group, sizes.send, sizes.receive, world);
        },
        gather(x, plan));
    auto done = Inner::run(experts, received, sizes.routing(routing.weights.options()));
    const at::Tensor home = moecod::detail::ExchangeFunction::apply(done.y, &group, sizes.receive, sizes.send, 1 / world);
    done.y = combine(home, routing.weights, plan);
    return done;
  }

 private:
  /// How many rows go where, and which of the experts here each received row is for.
  struct Sizes {
    std::vector<int64_t> send, receive;  // [W] rows
    std::vector<int32_t> expert;         // [rows received], of the experts here
    std::vector<int64_t> counts;         // [experts here]

    Sizes(distributed::Group& group, const at::Tensor& mine, int64_t first, int64_t here) : counts(std::size_t(here), 0) {
      const at::Tensor all = group.gather(mine).to(at::kCPU).contiguous();  // [W, E]
      const int64_t* count = all.const_data_ptr<int64_t>();
      const int64_t experts = all.size(1);
      for (int64_t r = 0; r < group.world(); ++r) {
        int64_t to = 0, from = 0;
        for (int64_t e = 0; e < here; ++e) {
          to += count[group.rank() * experts + r * here + e];
          const int64_t n = count[r * experts + first + e];
          from += n;
          expert.insert(expert.end(), std::size_t(n), int32_t(e));
          counts[std::size_t(e)] += n;
        }
        send.push_back(to);
        receive.push_back(from);
      }
    }

    /// Every received row to its expert, with weight 1.
    Routing routing(const at::TensorOptions& weights) const {
      const int64_t rows = int64_t(expert.size());
      Routing out;
      out.experts = at::tensor(expert, at::kInt).view({rows, 1}).to(weights.device());
      out.weights = at::ones({rows, 1}, weights);
      out.counts = at::tensor(counts, at::kLong).to(weights.device());
      out.assignments = rows;
      return out;
    }
  };
};

}  // namespace dispatch

}  // namespace moecod
