#pragma once
// From rows.def to the types of the models: each table is the product of its policies, all tables one after another
// are the rows.

#include <boost/hana/append.hpp>
#include <boost/hana/at.hpp>
#include <boost/hana/back.hpp>
#include <boost/hana/cartesian_product.hpp>
#include <boost/hana/concat.hpp>
#include <boost/hana/drop_back.hpp>
#include <boost/hana/drop_front.hpp>
#include <boost/hana/filter.hpp>
#include <boost/hana/fold_left.hpp>
#include <boost/hana/is_empty.hpp>
#include <boost/hana/length.hpp>
#include <boost/hana/transform.hpp>
#include <boost/hana/tuple.hpp>
#include <boost/hana/type.hpp>
#include <boost/hana/unpack.hpp>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <type_traits>

#include "examples/ablation/row.hpp"
#include "moecod/backbone/backbone.hpp"
#include "moecod/expert/contrast.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/edge.hpp"
#include "moecod/expert/frequency.hpp"
#include "moecod/expert/texture.hpp"
#include "moecod/model/feature_level.hpp"
#include "moecod/moe/moe.hpp"

namespace moecod::examples::ablation {

namespace hana = boost::hana;

// ---- What rows.def may name beside the library's own policies -------------------------------------------------------

inline constexpr int64_t num_experts = AnyFeatureModel::num_experts;
using ReplicatedConv = Replicated<expert::Conv<>, num_experts>;
using DistinctKinds = Distinct<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>, expert::Texture<>,
                       expert::Frequency<>>;

// The names of each axis: the library's policies, and your own, by a using-declaration in the namespace of their axis.
namespace named {
namespace router {
using namespace moecod::router;
}
namespace gate {
using namespace moecod::gate;
}
namespace balance {
using namespace moecod::balance;
}
namespace dispatch {
using namespace moecod::dispatch;
}
}  // namespace named

/// PVTv2-B0, compiled once for all rows (backbone.cpp).
struct PvtV2B0 {
  using policy_kind = kind::backbone;
  struct Options {};
  static std::shared_ptr<backbone::Backbone> make(const Options&);
};

// ---- Policies with their names --------------------------------------------------------------------------------------

template <std::size_t N>
struct Word {
  constexpr Word(const char (&text)[N]) { std::copy(text, text + N, letters); }  // NOLINT: implicit on purpose
  constexpr std::string_view view() const { return {letters, N - 1}; }
  char letters[N];
};

/// A line of rows.def that begins a table.
template <Word Name>
struct Table {
  static constexpr bool begins = true;
  static constexpr std::string_view name = Name.view();
};

/// A line that names a policy.
template <Axis A, Word Name, class P>
struct Choice {
  static constexpr bool begins = false;
  static constexpr Axis axis = A;
  static constexpr std::string_view name = Name.view();
  using policy = P;
};

template <int64_t K>
using Number = std::integral_constant<int64_t, K>;

/// What a table has on an axis that it leaves out, in the order of Axis.
inline constexpr auto base = hana::tuple_t<
    Choice<Axis::router, "GlobalPool", router::GlobalPool>, Choice<Axis::experts, "ReplicatedConv", ReplicatedConv>,
    Choice<Axis::gate, "TopKSoftmax", gate::TopKSoftmax>, Choice<Axis::top_k, "2", Number<2>>,
    Choice<Axis::balance, "EmaBias", balance::EmaBias>, Choice<Axis::dispatch, "Grouped", dispatch::Grouped>>;

// ---- Rows -----------------------------------------------------------------------------------------------------------

/// One model of the ablation: a choice on every axis.
template <class TableName, class R, class X, class G, class K, class B, class D>
struct Row {
  using table = TableName;
  using select = std::conditional_t<K::policy::value == num_experts, select::Dense<typename G::policy>,
                                    select::TopK<K::policy::value, typename G::policy>>;
  using model = FeatureLevel<PvtV2B0, Mixture<typename R::policy, typename X::policy, select,
                                                        typename B::policy, typename D::policy>>;
  static constexpr std::string_view names[]{R::name, X::name, G::name, K::name, B::name, D::name};
};

namespace detail {

#define TABLE(name) Table<#name>,
#define ROUTER(name) Choice<Axis::router, #name, named::router::name>,
#define EXPERTS(name) Choice<Axis::experts, #name, name>,
#define GATE(name) Choice<Axis::gate, #name, named::gate::name>,
#define TOP_K(number) Choice<Axis::top_k, #number, Number<number>>,
#define BALANCE(name) Choice<Axis::balance, #name, named::balance::name>,
#define DISPATCH(name) Choice<Axis::dispatch, #name, named::dispatch::name>,
inline constexpr auto lines = hana::drop_back(hana::tuple_t<
#include MOECOD_ABLATION_ROWS
    void>);
#undef TABLE
#undef ROUTER
#undef EXPERTS
#undef GATE
#undef TOP_K
#undef BALANCE
#undef DISPATCH

/// Tables as tuples of their lines, the one that begins it first.
inline constexpr auto tables = hana::fold_left(lines, hana::make_tuple(), [](auto done, auto line) {
  if constexpr (decltype(line)::type::begins) {
    return hana::append(done, hana::make_tuple(line));
  } else {
    static_assert(decltype(!hana::is_empty(done))::value, "moecod: the first line of rows.def must be a TABLE");
    return hana::append(hana::drop_back(done), hana::append(hana::back(done), line));
  }
});

/// A table's choices on the axis of `otherwise`, or that one.
inline constexpr auto choices_or = [](auto choices, auto otherwise) {
  constexpr Axis axis = decltype(otherwise)::type::axis;
  auto mine = hana::filter(choices, [](auto c) { return hana::bool_c<decltype(c)::type::axis == axis>; });
  if constexpr (decltype(hana::is_empty(mine))::value) {
    return hana::make_tuple(otherwise);
  } else {
    return mine;
  }
};

inline constexpr auto rows_of_table = [](auto table) {
  auto choices = hana::drop_front(table);
  auto axes = hana::transform(base, [=](auto otherwise) { return choices_or(choices, otherwise); });
  return hana::transform(hana::cartesian_product(axes), [=](auto combination) {
    return hana::unpack(combination, [=](auto... choice) {
      return hana::type_c<Row<typename decltype(+table[hana::size_c<0>])::type, typename decltype(choice)::type...>>;
    });
  });
};

}  // namespace detail

inline constexpr auto rows = hana::fold_left(hana::transform(detail::tables, detail::rows_of_table), hana::make_tuple(),
                                             hana::concat);

template <std::size_t I>
using row_t = typename decltype(+hana::at_c<I>(rows))::type;

}  // namespace moecod::examples::ablation
