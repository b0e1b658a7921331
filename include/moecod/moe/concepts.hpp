#pragma once
#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "moecod/moe/kind.hpp"
#include "moecod/moe/routing.hpp"
#include "moecod/moe/rows.hpp"

/// What each policy of a mixture must offer: one concept a requirement. docs/contracts.md has the semantics.
/// Mixture asserts them one by one, so that a policy that misses a member is told which.
namespace moecod {

// Every policy.

template <class P, class Kind>
concept names_kind = std::same_as<typename P::policy_kind, Kind>;

template <class P>
concept has_options = std::default_initializable<typename P::Options>;

/// The mixture tells policies with state how many experts there are.
template <class P>
concept options_count_experts = requires(typename P::Options options) { options.experts = std::int64_t{1}; };

template <class P>
concept made_from_options = std::constructible_from<P, const typename P::Options&>;

// Router.

template <class R>
concept has_granularity =
    std::same_as<typename R::granularity, rows::Images> || std::same_as<typename R::granularity, rows::Positions>;

template <class R, class X>
concept routes = requires(R& router, const X& x) {
  { router.forward(x) } -> std::convertible_to<at::Tensor>;
};

// Select.

template <class S>
concept selects = requires(const at::Tensor& t, bool training) {
  { S::select(t, t, training) } -> std::same_as<Routing>;
};

/// Selections that add the logit bias themselves, so that it costs no launch of its own.
template <class S>
concept adds_logit_bias = requires(const at::Tensor& t, bool training) {
  { S::select(t, t, training, t) } -> std::same_as<Routing>;
};

template <class S>
concept counts_assignments = requires(std::int64_t n) {
  { S::assignments(n, n) } -> std::convertible_to<std::int64_t>;
};

// Balance: a policy has those of these that it needs.

template <class B>
concept has_logit_bias = requires(const B& balance) {
  { balance.logit_bias() } -> std::same_as<at::Tensor>;
};

template <class B>
concept has_selection_bias = requires(const B& balance) {
  { balance.selection_bias() } -> std::same_as<at::Tensor>;
};

template <class B>
concept has_auxiliary_loss = requires(const B& balance, const Routing& routing) {
  { balance.loss(routing) } -> std::same_as<at::Tensor>;
};

/// A member that is meant for one of these and would be passed over in silence.
template <class B>
concept near_miss_of_logit_bias = requires(B& balance) { balance.logit_bias(); } && !has_logit_bias<B>;
template <class B>
concept near_miss_of_selection_bias = requires(B& balance) { balance.selection_bias(); } && !has_selection_bias<B>;
template <class B>
concept near_miss_of_loss =
    requires(B& balance, const Routing& routing) { balance.loss(routing); } && !has_auxiliary_loss<B>;

/// Follows the load. A policy that counts derives from balance::Counting, by which balance::commit finds it.
template <class B>
concept counts_load = requires(B& balance, const Routing& routing) { balance.count(routing); };

// Experts: the storage of a mixture's experts.

template <class E>
concept has_expert_count = requires {
  { E::count } -> std::convertible_to<std::int64_t>;
};

template <class E>
concept has_rows =
    std::same_as<typename E::rows, rows::Images> || std::same_as<typename E::rows, rows::Positions>;

template <class E>
concept says_whether_stacked = requires {
  { E::stacked } -> std::convertible_to<bool>;
};

// Dispatch.

/// Needs experts in stacked storage.
template <class D>
concept says_needs_stacked = requires {
  { D::needs_stacked } -> std::convertible_to<bool>;
};

/// Can weight the outputs of spatial experts by position.
template <class D>
concept says_position_weights = requires {
  { D::position_weights } -> std::convertible_to<bool>;
};

/// A pair of granularity and rows that a dispatcher can execute (the table in docs/contracts.md).
template <class Granularity, class Rows, class Dispatch>
concept legal_rows = std::same_as<Granularity, rows::Images> || std::same_as<Rows, rows::Positions> ||
                     Dispatch::position_weights;

}  // namespace moecod
