#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moecod/core/options.hpp"

/// Options (core/options.hpp) as command-line flags and as JSON. Needs no LibTorch.
namespace moecod::train {

/// One flag for each option of `options`, which must outlive the parsing. The help shows what is accepted and the
/// default, which is the value that the member has now. A bool named x gets --x and --no-x; a list takes one or more
/// words and may be repeated; an optional stays unset without its flag.
/// Errors: CLI::ParseError at parsing, naming the flag, what was expected and what was given.
template <described T>
void add_flags(CLI::App& app, T& options) {
  for_each_option(options, [&]<class Value, class Allowed>(const std::string& flag, Value& value,
                                                           const Allowed& allowed, std::string_view help) {
    const std::string name = "--" + flag;
    if constexpr (std::same_as<Value, bool>) {
      app.add_flag(name + ",!--no-" + flag, value, std::string(help) + (value ? " (default: on)" : " (default: off)"));
    } else {
      const auto assign = [&value, flag, allowed](const CLI::results_t& words) {
        try {
          if constexpr (std::same_as<Value, std::vector<std::string>>) {
            value.clear();
            for (const std::string& word : words)
              value.push_back(parse_option<Value>(flag, word, allowed).front());
          } else {
            value = parse_option<Value>(flag, words.front(), allowed);
          }
        } catch (const std::invalid_argument& error) {
          throw CLI::ValidationError(error.what());
        }
        return true;
      };
      CLI::Option* option = app.add_option(name, assign, std::string(help));
      option->type_name(expected_text<Value>(allowed))->default_str(option_text(value, allowed));
      if constexpr (std::same_as<Value, std::vector<std::string>>)
        option->expected(1, CLI::detail::expected_max_vector_size)->allow_extra_args();
    }
  });
}

namespace detail {

template <class T>
bool has_type(const nlohmann::json& json) {
  if constexpr (std::same_as<T, bool>) return json.is_boolean();
  else if constexpr (std::same_as<T, int64_t>) return json.is_number_integer();
  else if constexpr (std::same_as<T, double>) return json.is_number();
  else if constexpr (std::same_as<T, std::string> || std::is_enum_v<T>) return json.is_string();
  else {
    if (!json.is_array()) return false;
    for (const auto& element : json)
      if (!element.is_string()) return false;
    return true;
  }
}

}  // namespace detail

/// {flag: value}, flat, in the order of the flags; an optional that is not set is null, an enumeration its name.
template <described T>
nlohmann::ordered_json options_to_json(const T& options) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for_each_option(options, [&]<class Value, class Allowed>(const std::string& flag, const Value& value,
                                                           const Allowed& allowed, std::string_view) {
    using Bare = typename moecod::detail::optional_value<Value>::type;
    const auto write = [&](const Bare& bare) {
      if constexpr (std::is_enum_v<Bare>) json[flag] = option_text(bare, allowed);
      else json[flag] = bare;
    };
    if constexpr (moecod::detail::optional_value<Value>::is_optional) {
      json[flag] = nullptr;
      if (value) write(*value);
    } else {
      write(value);
    }
  });
  return json;
}

/// Sets the options that `json` holds; the others keep their values. Nothing is set when there is an error.
/// Errors: std::invalid_argument naming every unknown key, or the flag with what was expected and what was given.
template <described T>
void options_from_json(const nlohmann::json& json, T& options) {
  if (!json.is_object()) throw std::invalid_argument("options: expected a JSON object, got " + json.dump());
  std::set<std::string> unknown;
  for (const auto& item : json.items()) unknown.insert(item.key());
  T read = options;
  for_each_option(read, [&]<class Value, class Allowed>(const std::string& flag, Value& value, const Allowed& allowed,
                                                        std::string_view) {
    if (unknown.erase(flag) == 0) return;
    using Bare = typename moecod::detail::optional_value<Value>::type;
    const nlohmann::json& given = json.at(flag);
    if constexpr (moecod::detail::optional_value<Value>::is_optional) {
      if (given.is_null()) return value.reset();
    }
    if (!detail::has_type<Bare>(given)) throw option_error<Value>(flag, allowed, given.dump());
    if constexpr (std::is_enum_v<Bare>) {
      value = parse_option<Bare>(flag, given.get<std::string>(), allowed);
    } else {
      value = given.get<Bare>();
      check_option(flag, value, allowed);
    }
  });
  if (!unknown.empty()) {
    std::string names;
    for (const std::string& name : unknown) names += (names.empty() ? "" : ", ") + name;
    throw std::invalid_argument("options: unknown keys: " + names);
  }
  options = std::move(read);
}

/// Two runs have the same options, but for those that change no figure. Errors: std::runtime_error that names `whose`
/// options differ and the first flag.
inline void check_same(const nlohmann::ordered_json& recorded, const nlohmann::ordered_json& mine,
                       const std::vector<std::string>& except, const std::string& whose) {
  for (const auto& [flag, value] : mine.items()) {
    if (std::find(except.begin(), except.end(), flag) != except.end()) continue;
    const bool there = recorded.is_object() && recorded.contains(flag);
    if (!there || recorded.at(flag) != value)
      throw std::runtime_error(whose + " had --" + flag + " " + (there ? recorded.at(flag).dump() : "(none)") +
                               ", this one has " + value.dump());
  }
}

}  // namespace moecod::train
