#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

/// Options that describe themselves once.
///
/// A struct of options lists its members in one constexpr tuple; command-line flags, JSON, checks and what a
/// checkpoint records are all made from that list (train/flags.hpp):
///
///     struct Options {
///       double learning_rate = 1e-3;
///       Shape shape = Shape::Cosine;
///       AdamW::Options optimizer;
///       static constexpr auto options = std::make_tuple(
///           option(&Options::learning_rate, "lr", "peak learning rate", above(0)),
///           option(&Options::shape, "scheduler", "how the learning rate falls", choices("none", "cosine")),
///           nested(&Options::optimizer));
///     };
///
/// Members may be bool, int64_t, double, std::string, enumerations (through choices), std::vector<std::string>, and
/// std::optional of these. This header needs no LibTorch.
namespace moecod {

/// The numbers that an option accepts: low <= x <= high, or low < x <= high.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool above = false;
};
constexpr Range between(double low, double high) { return {low, high, false}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range above(double low) { return {.low = low, .above = true}; }

/// The words that an option accepts. For an enumeration: the names of its values 0, 1, 2, ... in order.
template <std::size_t N>
struct Choices {
  std::array<std::string_view, N> names;
};
template <std::convertible_to<std::string_view>... S>
constexpr Choices<sizeof...(S)> choices(S... names) {
  return {{std::string_view(names)...}};
}

/// No restriction beyond the type's own.
struct Anything {};

template <class Struct, class Member, class Allowed>
struct Option {
  Member Struct::*member;
  std::string_view flag, help;
  Allowed allowed;
};
template <class Struct, class Member, class Allowed = Anything>
constexpr Option<Struct, Member, Allowed> option(Member Struct::*member, std::string_view flag, std::string_view help,
                                                 Allowed allowed = {}) {
  return {member, flag, help, allowed};
}

/// A member that is itself a struct of options; `prefix` goes before its flags.
template <class Struct, class Member>
struct Nested {
  Member Struct::*member;
  std::string_view prefix;
};
template <class Struct, class Member>
constexpr Nested<Struct, Member> nested(Member Struct::*member, std::string_view prefix = "") {
  return {member, prefix};
}

template <class T>
concept described = requires { std::remove_cvref_t<T>::options; };

/// Calls f(flag, member, allowed, help) for every option of `value`, nested ones in their place.
template <described T, class F>
void for_each_option(T& value, F&& f, const std::string& prefix = "") {
  const auto visit = [&]<class Item>(const Item& item) {
    if constexpr (requires { item.prefix; }) {
      for_each_option(value.*item.member, f, prefix + std::string(item.prefix));
    } else {
      f(prefix + std::string(item.flag), value.*item.member, item.allowed, item.help);
    }
  };
  std::apply([&](const auto&... item) { (visit(item), ...); }, std::remove_cvref_t<T>::options);
}

namespace detail {

template <class T>
struct optional_value {
  using type = T;
  static constexpr bool is_optional = false;
};
template <class T>
struct optional_value<std::optional<T>> {
  using type = T;
  static constexpr bool is_optional = true;
};

inline std::string number_text(double value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

}  // namespace detail

/// What an option of this type accepts, in words: "a number in [0, 1]", "one of none, cosine".
template <class T, class Allowed>
std::string expected_text(const Allowed& allowed) {
  using Value = typename detail::optional_value<T>::type;
  if constexpr (requires { allowed.names; }) {
    std::string text;
    for (const std::string_view name : allowed.names) text += (text.empty() ? "one of " : ", ") + std::string(name);
    return text;
  } else if constexpr (std::same_as<Value, bool>) {
    return "true or false";
  } else if constexpr (std::is_arithmetic_v<Value>) {
    std::string text = std::is_integral_v<Value> ? "an integer" : "a number";
    if constexpr (std::same_as<Allowed, Range>) {
      const bool low = std::isfinite(allowed.low), high = std::isfinite(allowed.high);
      if (high) text += (allowed.above ? " in (" : " in [") + detail::number_text(allowed.low) + ", " +
                        detail::number_text(allowed.high) + "]";
      else if (low) text += (allowed.above ? " > " : " >= ") + detail::number_text(allowed.low);
    }
    return text;
  } else if constexpr (std::same_as<Value, std::string>) {
    return "text";
  } else {
    return "a list of texts";
  }
}

/// A value as one writes it on a command line; an empty text for an optional that is not set.
template <class T, class Allowed>
std::string option_text(const T& value, const Allowed& allowed) {
  if constexpr (detail::optional_value<T>::is_optional) {
    return value ? option_text(*value, allowed) : std::string();
  } else if constexpr (std::same_as<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    const auto index = static_cast<std::size_t>(value);
    return index < allowed.names.size() ? std::string(allowed.names[index]) : std::to_string(index);
  } else if constexpr (std::same_as<T, double>) {
    return detail::number_text(value);
  } else if constexpr (std::is_integral_v<T>) {
    return std::to_string(value);
  } else if constexpr (std::same_as<T, std::string>) {
    return value;
  } else {
    std::string text;
    for (const std::string& part : value) text += (text.empty() ? "" : " ") + part;
    return text;
  }
}

/// The error for an option that was given something else than it accepts.
template <class T, class Allowed>
std::invalid_argument option_error(const std::string& flag, const Allowed& allowed, const std::string& given) {
  return std::invalid_argument("--" + flag + ": expected " + expected_text<T>(allowed) + ", got " +
                               (given.empty() ? "nothing" : given));
}

/// Errors: std::invalid_argument naming the flag, what was expected and what is there.
template <class T, class Allowed>
void check_option(const std::string& flag, const T& value, const Allowed& allowed) {
  using Value = typename detail::optional_value<T>::type;
  if constexpr (detail::optional_value<T>::is_optional) {
    if (value) check_option(flag, *value, allowed);
  } else {
    bool fits = true;
    if constexpr (std::is_enum_v<Value>) {
      static_assert(requires { allowed.names; }, "an option that is an enumeration must list its names by choices()");
      fits = static_cast<std::size_t>(value) < allowed.names.size();
    } else if constexpr (requires { allowed.names; }) {
      fits = false;
      for (const std::string_view name : allowed.names) fits |= value == name;
    } else if constexpr (std::same_as<Value, double>) {
      fits = std::isfinite(value);
    }
    if constexpr (std::same_as<Allowed, Range>) {
      static_assert(std::is_arithmetic_v<Value>, "a range is for numbers");
      const auto x = static_cast<double>(value);
      fits = fits && x <= allowed.high && (allowed.above ? x > allowed.low : x >= allowed.low);
    }
    if (!fits) throw option_error<T>(flag, allowed, option_text(value, allowed));
  }
}

/// Every option of `value` is one that it accepts.
/// Errors: std::invalid_argument, as check_option.
template <described T>
void check_options(const T& value) {
  for_each_option(value, [](const std::string& flag, const auto& member, const auto& allowed, std::string_view) {
    check_option(flag, member, allowed);
  });
}

/// The value that `text` stands for; the whole text must be used.
/// Errors: std::invalid_argument, as check_option.
template <class T, class Allowed>
T parse_option(const std::string& flag, const std::string& text, const Allowed& allowed) {
  using Value = typename detail::optional_value<T>::type;
  Value value{};
  bool understood = true;
  if constexpr (std::same_as<Value, bool>) {
    understood = text == "true" || text == "false";
    value = text == "true";
  } else if constexpr (std::is_enum_v<Value>) {
    std::size_t index = 0;
    while (index < allowed.names.size() && allowed.names[index] != text) ++index;
    understood = index < allowed.names.size();
    value = static_cast<Value>(index);
  } else if constexpr (std::is_arithmetic_v<Value>) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    understood = error == std::errc() && stop == end;
  } else if constexpr (std::same_as<Value, std::string>) {
    value = text;
  } else {
    value.push_back(text);
  }
  if (!understood) throw option_error<T>(flag, allowed, text);
  check_option(flag, value, allowed);
  return value;
}

}  // namespace moecod
