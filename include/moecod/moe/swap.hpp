#pragma once
#include <type_traits>

namespace moecod {

namespace detail {

template <class T, class Policy>
concept same_kind = requires { typename T::policy_kind; } &&
                    std::is_same_v<typename T::policy_kind, typename Policy::policy_kind>;

/// A type that is not a template of types holds no slots.
template <class T, class Policy>
struct swap_in {
  using type = T;
  static constexpr int found = 0;
};

template <class T, class Policy>
  requires same_kind<T, Policy>
struct swap_in<T, Policy> {
  using type = Policy;
  static constexpr int found = 1;
};

template <template <class...> class Template, class... Slots, class Policy>
  requires(!same_kind<Template<Slots...>, Policy>)
struct swap_in<Template<Slots...>, Policy> {
  using type = Template<typename swap_in<Slots, Policy>::type...>;
  static constexpr int found = (swap_in<Slots, Policy>::found + ... + 0);
};

template <class Model, class Policy>
struct checked_swap {
  static_assert(swap_in<Model, Policy>::found > 0,
                "moecod: swap_t<Model, Policy>: the model has no slot of the policy's kind");
  using type = typename swap_in<Model, Policy>::type;
};

}  // namespace detail

/// `Model` with every policy of `Policy`'s kind, at every level, replaced by `Policy`:
///
///     using Ablated = swap_t<Camo, balance::Switch>;
///
/// It looks through templates whose arguments are all types; finding no slot of that kind is a compile error.
template <class Model, class Policy>
using swap_t = typename detail::checked_swap<Model, Policy>::type;

}  // namespace moecod
