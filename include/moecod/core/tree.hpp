#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

/// Trees of tensors: what experts take and return.
///
/// A tree is a tensor (a leaf), a std::vector, std::array or std::tuple of trees, or a struct that lists the members
/// that are trees, once:
///
///     struct Scene {
///       at::Tensor image;
///       Pyramid pyramid;
///       static constexpr auto members = std::make_tuple(&Scene::image, &Scene::pyramid);
///     };
///
/// Members that are not listed are copied along unchanged. An undefined leaf stands for something absent; every
/// function here passes it on untouched.
namespace moecod::tree {

template <class T>
concept leaf = std::same_as<std::remove_cvref_t<T>, at::Tensor>;

template <class T>
concept listed = requires { std::remove_cvref_t<T>::members; };

namespace detail {
template <class T>
struct is_sequence : std::false_type {};
template <class T>
struct is_sequence<std::vector<T>> : std::true_type {};
template <class T, std::size_t N>
struct is_sequence<std::array<T, N>> : std::true_type {};

template <class T>
struct is_tuple : std::false_type {};
template <class... T>
struct is_tuple<std::tuple<T...>> : std::true_type {};
}  // namespace detail

template <class T>
concept sequence = detail::is_sequence<std::remove_cvref_t<T>>::value;

template <class T>
concept product = detail::is_tuple<std::remove_cvref_t<T>>::value;

template <class T>
concept any = leaf<T> || listed<T> || sequence<T> || product<T>;

/// The tree whose leaves are f(leaf of first, leaves of rest...), in the shape of `first`.
template <any T, class F, class... Rest>
T map(F&& f, const T& first, const Rest&... rest) {
  if constexpr (leaf<T>) {
    return first.defined() ? f(first, rest...) : first;
  } else if constexpr (listed<T>) {
    T out = first;
    auto set = [&](auto member) { out.*member = tree::map(f, first.*member, rest.*member...); };
    std::apply([&](auto... member) { (set(member), ...); }, T::members);
    return out;
  } else if constexpr (sequence<T>) {
    T out = first;
    for (std::size_t i = 0; i < first.size(); ++i) out[i] = tree::map(f, first[i], rest[i]...);
    return out;
  } else {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      auto at = [&](auto index) { return tree::map(f, std::get<index()>(first), std::get<index()>(rest)...); };
      return T{at(std::integral_constant<std::size_t, I>{})...};
    }(std::make_index_sequence<std::tuple_size_v<T>>{});
  }
}

/// The defined leaves, in the order of the tree.
template <any T>
std::vector<at::Tensor> leaves(const T& value) {
  std::vector<at::Tensor> out;
  tree::map([&](const at::Tensor& leaf) { return out.push_back(leaf), leaf; }, value);
  return out;
}

/// The tree of the shape of `like` whose defined leaves are `values`, in order.
template <any T>
T with_leaves(const T& like, const std::vector<at::Tensor>& values) {
  std::size_t next = 0;
  return tree::map([&](const at::Tensor&) { return values.at(next++); }, like);
}

/// The length of the leading dimension, which all leaves share.
/// Errors: c10::Error when there is no leaf, or when two leaves differ.
template <any T>
int64_t rows(const T& value) {
  const auto all = leaves(value);
  TORCH_CHECK(!all.empty(), "moecod::tree::rows: expected at least one tensor, got an empty tree");
  for (const auto& leaf : all)
    TORCH_CHECK(leaf.dim() > 0 && leaf.size(0) == all.front().size(0),
                "moecod::tree::rows: every tensor must have the same leading dimension, got shapes ",
                all.front().sizes(), " and ", leaf.sizes());
  return all.front().size(0);
}

/// Trees of one shape joined along the leading dimension.
template <any T>
T cat(const std::vector<T>& parts) {
  TORCH_CHECK(!parts.empty(), "moecod::tree::cat: expected at least one tree");
  if (parts.size() == 1) return parts.front();
  std::vector<std::vector<at::Tensor>> columns(leaves(parts.front()).size());
  for (const T& part : parts) {
    const auto all = leaves(part);
    TORCH_CHECK(all.size() == columns.size(), "moecod::tree::cat: trees of ", columns.size(), " and ", all.size(),
                " tensors");
    for (std::size_t i = 0; i < all.size(); ++i) columns[i].push_back(all[i]);
  }
  std::vector<at::Tensor> joined;
  for (const auto& column : columns) joined.push_back(at::cat(column, 0));
  return with_leaves(parts.front(), joined);
}

/// The leaf that a mixture combines: the tensor itself, or what a struct names by `primary()`.
template <any T>
at::Tensor& primary(T& out) {
  if constexpr (leaf<T>) {
    return out;
  } else {
    static_assert(requires { { out.primary() } -> std::same_as<at::Tensor&>; },
                  "an expert's output that is not a tensor must have a member `at::Tensor& primary()`: the tensor "
                  "that the mixture combines");
    return out.primary();
  }
}

}  // namespace moecod::tree
