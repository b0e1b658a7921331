#pragma once
// Flags over policies that are chosen when the programs are compiled: there are those that the policy has.

#include <cstdint>
#include <string>
#include <tuple>
#include <typeinfo>

#include <c10/util/Exception.h>
#include <c10/util/Type.h>

#include "moecod/core/options.hpp"
#include "moecod/io/safetensors.hpp"

namespace moecod::examples {

namespace detail {

/// The flags of a balancing policy: those whose member its options have.
template <class Options>
constexpr auto balance_flags() {
  const auto rate = [] {
    if constexpr (requires { &Options::rate; }) {
      return std::make_tuple(option(&Options::rate, "bias-rate", "step of the balancing bias, in units of its policy",
                                    at_least(0)));
    } else {
      return std::tuple();
    }
  };
  const auto window = [] {
    if constexpr (requires { &Options::window; }) {
      return std::make_tuple(option(&Options::window, "bias-window", "optimizer steps per step of the bias", at_least(1)));
    } else {
      return std::tuple();
    }
  };
  const auto decay = [] {
    if constexpr (requires { &Options::decay; }) {
      return std::make_tuple(option(&Options::decay, "bias-decay", "decay of the usage that the bias follows",
                                    between(0, 0.99999)));
    } else {
      return std::tuple();
    }
  };
  const auto limit = [] {
    if constexpr (requires { &Options::limit; }) {
      return std::make_tuple(option(&Options::limit, "bias-limit", "largest size of the balancing bias", above(0)));
    } else {
      return std::tuple();
    }
  };
  return std::tuple_cat(rate(), window(), decay(), limit());
}

}  // namespace detail

/// The options of the balancing policy compiled, as flags. A policy that has no rate has no --bias-rate either, so that
/// no flag is accepted without effect.
template <class Balance>
struct BalanceFlags : Balance::Options {
  static constexpr auto options = detail::balance_flags<typename Balance::Options>();
};

/// Experts that a row goes to: K of TopK, all of others.
template <class Mixture>
constexpr int64_t experts_per_row() {
  if constexpr (requires { Mixture::select_type::per_row; }) {
    return Mixture::select_type::per_row;
  } else {
    return Mixture::num_experts;
  }
}

/// The key under which a weights file records the type of its model, policies and all.
inline constexpr const char* variant_key = "moecod.variant";

template <class Model>
std::string variant() {
  return c10::demangle(typeid(Model).name());
}

/// Errors: c10::Error if the file was written by a program compiled with other policies; files that do not say are
/// taken.
template <class Model>
void check_variant(const std::string& path, const io::Metadata& about) {
  const auto found = about.find(variant_key);
  TORCH_CHECK(found == about.end() || found->second == variant<Model>(), path, " is of another variant than the one "
              "compiled: it is ", found->second, ", this program has ", variant<Model>());
}

}  // namespace moecod::examples
