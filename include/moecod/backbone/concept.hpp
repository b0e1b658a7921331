#pragma once
#include <concepts>
#include <memory>
#include <type_traits>

#include "moecod/backbone/backbone.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::backbone {

/// A type that can stand as a model's backbone: either a Backbone constructible from its Options, or a choice made at
/// run time by `static std::shared_ptr<Backbone> make(const Options&)`, as backbone::Any.
template <class B>
concept policy = std::same_as<typename B::policy_kind, kind::backbone> &&
                 std::default_initializable<typename B::Options> &&
                 ((std::derived_from<B, Backbone> && std::constructible_from<B, const typename B::Options&>) ||
                  requires(const typename B::Options& options) {
                    { B::make(options) } -> std::same_as<std::shared_ptr<Backbone>>;
                  });

/// The module to register for a backbone policy. Its parameters have the same names whether the type was chosen when
/// the program was compiled or when it ran.
template <policy B>
std::shared_ptr<Backbone> create(const typename B::Options& options = {}) {
  if constexpr (std::derived_from<B, Backbone>) {
    return std::make_shared<B>(options);
  } else {
    return B::make(options);
  }
}

}  // namespace moecod::backbone
