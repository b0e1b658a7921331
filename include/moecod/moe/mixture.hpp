#pragma once
#include <torch/nn/module.h>

#include <memory>
#include <utility>

#include "moecod/core/graphed_calls.hpp"
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/concepts.hpp"
#include "moecod/moe/dispatch/execute.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod {

namespace detail {
struct WithAuxiliaryLoss {
  at::Tensor auxiliary_loss;  ///< [], zero for a given routing, which has no scores to push
};
struct WithoutAuxiliaryLoss {};
}  // namespace detail

/// What a mixture returns. y: the combined primary outputs; parts: each expert's rows(), weights() and whole output (a
/// tuple for Distinct; for Replicated one, stacked, rows sorted by expert). `auxiliary_loss` exists only if the
/// balancing policy has one.
template <class Parts, bool HasLoss>
struct MixtureOutput : std::conditional_t<HasLoss, detail::WithAuxiliaryLoss, detail::WithoutAuxiliaryLoss> {
  at::Tensor y;
  Routing routing;
  Parts parts;
};

/// A mixture of experts: the one block from which every model here is made.
///
///     forward(x) = run(x, route(x))
///
/// route() decides, in training the way of training while the router is in training mode, and counts while the
/// balancing policy is; run() executes a given decision, its
/// own or any other, and moves nothing but the experts' batch statistics.
///
/// x is a tree of tensors (core/tree.hpp) whose leaves share the leading dimension. With a router by image a row is
/// one entry of it; with a router by position x is one tensor, [B, C, H, W] or [N, C], and a row is one position.
///
/// Synchronises: as its dispatcher does. Errors: illegal combinations of policies are compile errors that name the
/// requirement; c10::Error when a given routing does not fit the rows.
template <class Router, class Experts, class Select, class Balance, class Dispatch>
class Mixture : public torch::nn::Module, public Graphed {
  static_assert(names_kind<Router, kind::router> && has_options<Router>,
                "moecod: Router (concept moecod::names_kind, moecod::has_options): needs `using policy_kind = "
                "kind::router` and a default-constructible `struct Options`");
  static_assert(options_count_experts<Router> && made_from_options<Router>,
                "moecod: Router (concept moecod::options_count_experts, moecod::made_from_options): needs "
                "`Options::experts` and a constructor from `const Options&`");
  static_assert(has_granularity<Router>,
                "moecod: Router (concept moecod::has_granularity): needs the member type `granularity`, rows::Images or "
                "rows::Positions");
  static_assert(names_kind<Experts, kind::experts> && has_options<Experts> && made_from_options<Experts>,
                "moecod: Experts (concept moecod::names_kind, moecod::has_options, moecod::made_from_options): use "
                "Replicated<Expert, N> or Distinct<Experts...>");
  static_assert(has_expert_count<Experts> && says_whether_stacked<Experts>,
                "moecod: Experts (concept moecod::has_expert_count, moecod::says_whether_stacked): needs the constants "
                "`count` and `stacked`");
  static_assert(has_rows<Experts>,
                "moecod: Experts (concept moecod::has_rows): each expert needs the member type `rows`, rows::Images or "
                "rows::Positions");
  static_assert(names_kind<Select, kind::select>,
                "moecod: Select (concept moecod::names_kind): needs `using policy_kind = kind::select`");
  static_assert(selects<Select>,
                "moecod: Select (concept moecod::selects): needs `static Routing select(const at::Tensor& logits, const "
                "at::Tensor& selection_bias, bool training)`");
  static_assert(counts_assignments<Select>,
                "moecod: Select (concept moecod::counts_assignments): needs `static int64_t assignments(int64_t rows, "
                "int64_t experts)`");
  static_assert(names_kind<Balance, kind::balance> && has_options<Balance>,
                "moecod: Balance (concept moecod::names_kind, moecod::has_options): needs `using policy_kind = "
                "kind::balance` and a default-constructible `struct Options`");
  static_assert(options_count_experts<Balance> && made_from_options<Balance>,
                "moecod: Balance (concept moecod::options_count_experts, moecod::made_from_options): needs "
                "`Options::experts` and a constructor from `const Options&`");
  static_assert(!near_miss_of_logit_bias<Balance>,
                "moecod: Balance (concept moecod::has_logit_bias): must be `at::Tensor logit_bias() const`, by value");
  static_assert(!near_miss_of_selection_bias<Balance>,
                "moecod: Balance (concept moecod::has_selection_bias): must be `at::Tensor selection_bias() const`, by "
                "value");
  static_assert(!near_miss_of_loss<Balance>,
                "moecod: Balance (concept moecod::has_auxiliary_loss): must be `at::Tensor loss(const Routing&) const`, "
                "by value");
  static_assert(!counts_load<Balance> || std::is_base_of_v<balance::Counting, Balance> ||
                    requires { typename Balance::members_count; },
                "moecod: Balance (concept moecod::counts_load): a policy that counts must derive from balance::Counting, "
                "by which balance::commit finds and updates it");
  static_assert(names_kind<Dispatch, kind::dispatch>,
                "moecod: Dispatch (concept moecod::names_kind): needs `using policy_kind = kind::dispatch`");
  static_assert(says_needs_stacked<Dispatch> && says_position_weights<Dispatch>,
                "moecod: Dispatch (concept moecod::says_needs_stacked, moecod::says_position_weights): needs the "
                "constants `needs_stacked` and `position_weights`");
  static_assert(!Dispatch::needs_stacked || Experts::stacked,
                "moecod: dispatch::Grouped needs stacked experts: Replicated<Expert, N> of an expert written over "
                "`template <class Layers>` with a `rebind`; use dispatch::Batched for others");
  static_assert(legal_rows<typename Router::granularity, typename Experts::rows, Dispatch>,
                "moecod: routing by position over spatial experts (rows::Images) is possible with dispatch::Masked only; "
                "use experts of rows::Positions, or a router by image");
  static constexpr bool by_position = std::is_same_v<typename Router::granularity, rows::Positions>;

 public:
  using router_type = Router;
  using experts_type = Experts;
  using select_type = Select;
  using balance_type = Balance;
  using dispatch_type = Dispatch;
  static constexpr int64_t num_experts = Experts::count;

  struct Options {
    typename Router::Options router;
    typename Experts::Options experts;
    typename Balance::Options balance;
    bool recompute = false;  ///< compute the experts' activations anew in the backward pass instead of keeping them
  };

  Mixture() : Mixture(Options()) {}
  explicit Mixture(Options options) {
    options.router.experts = num_experts;
    options.balance.experts = num_experts;
    router = register_module("router", std::make_shared<Router>(options.router));
    experts = register_module("experts", std::make_shared<Experts>(options.experts));
    balance = register_module("balance", std::make_shared<Balance>(options.balance));
    experts->recompute = options.recompute;
    if constexpr (requires { Dispatch::spreads_experts; }) experts->wanted = true;
  }

  /// Decides where each row of x goes. Counts the decision while `balance` is in training mode.
  template <tree::any X>
  Routing route(const X& x) {
    static_assert(routes<Router, X>,
                  "moecod: Router (concept moecod::routes): needs `at::Tensor forward(const X&)` for the input given to "
                  "the mixture, returning logits [N, E]");
    at::Tensor logits = router_calls_(*router, [this](const X& in) { return router->forward(in); }, x);
    TORCH_CHECK(logits.dim() == 2 && logits.size(1) == num_experts, "Mixture: the router must return logits [N, ",
                num_experts, "], got ", logits.sizes());
    if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
    at::Tensor selection_bias;
    if constexpr (has_selection_bias<Balance>) selection_bias = balance->selection_bias();
    Routing routing = [&] {
      if constexpr (!has_logit_bias<Balance>) {
        return Select::select(logits, selection_bias, router->is_training());
      } else if constexpr (adds_logit_bias<Select>) {
        return Select::select(logits, selection_bias, router->is_training(), balance->logit_bias());
      } else {
        return Select::select(logits + balance->logit_bias(), selection_bias, router->is_training());
      }
    }();
    routing.logits = logits;
    if constexpr (counts_load<Balance>) {
      if (balance->is_training()) balance->count(routing);
    }
    return routing;
  }

  /// Executes a decision.
  template <tree::any X>
  auto run(const X& x, const Routing& routing) {
    TORCH_CHECK(routing.num_experts() == num_experts, "Mixture: the routing is over ", routing.num_experts(),
                " experts, the mixture has ", num_experts);
    auto executed = [&] {
      if constexpr (by_position && std::is_same_v<typename Experts::rows, rows::Positions>) {
        static_assert(tree::leaf<X>, "moecod: routing by position needs a single tensor as input");
        const at::Tensor flat = rows::to_positions(x);
        check_rows(routing, flat.size(0));
        auto out = Dispatch::run(*experts, flat, routing);
        out.y = rows::from_positions(out.y, x);
        return out;
      } else {
        if constexpr (!by_position) check_rows(routing, tree::rows(x));
        return Dispatch::run(*experts, x, routing);
      }
    }();
    MixtureOutput<decltype(executed.parts), has_auxiliary_loss<Balance>> out;
    if constexpr (has_auxiliary_loss<Balance>) {
      out.auxiliary_loss =
          routing.logits.defined() ? balance->loss(routing) : at::zeros({}, routing.weights.options());
    }
    out.y = std::move(executed.y);
    out.routing = routing;
    out.parts = std::move(executed.parts);
    return out;
  }

  template <tree::any X>
  auto forward(const X& x) {
    return run(x, route(x));
  }

  std::shared_ptr<Router> router;
  std::shared_ptr<Experts> experts;
  std::shared_ptr<Balance> balance;

  void record_with(const std::shared_ptr<GraphRecorder>& recorder) override { router_calls_.recorder = recorder; }

 private:
  GraphedCalls router_calls_;

  static void check_rows(const Routing& routing, int64_t rows) {
    TORCH_CHECK(routing.rows() == rows, "Mixture: the routing is for ", routing.rows(), " rows, the input has ", rows);
  }
};

}  // namespace moecod
