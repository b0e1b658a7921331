#pragma once
// Flags over policies that are chosen when the programs are compiled: they set what the policy has.

#include <cstdint>
#include <string>
#include <typeinfo>

#include <c10/util/Exception.h>
#include <c10/util/Type.h>

#include "moecod/io/safetensors.hpp"

namespace moecod::examples {

/// Bias policies have a rate, a window and perhaps a decay and a limit, auxiliary losses have none of them.
template <class Options>
void set_rate(Options& options, double rate) {
  if constexpr (requires { options.rate = rate; }) options.rate = rate;
}
template <class Options>
void set_window(Options& options, int64_t window) {
  if constexpr (requires { options.window = window; }) options.window = window;
}
template <class Options>
void set_decay(Options& options, double decay) {
  if constexpr (requires { options.decay = decay; }) options.decay = decay;
}
template <class Options>
void set_limit(Options& options, double limit) {
  if constexpr (requires { options.limit = limit; }) options.limit = limit;
}
template <class Options>
double default_rate(const Options& options = {}) {
  if constexpr (requires { options.rate; }) return options.rate;
  return 0;
}
template <class Options>
double default_decay(const Options& options = {}) {
  if constexpr (requires { options.decay; }) return options.decay;
  return 0;
}

template <class Options>
double default_limit(const Options& options = {}) {
  if constexpr (requires { options.limit; }) return options.limit;
  return 1;
}

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
