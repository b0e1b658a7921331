#pragma once
#include <boost/hana/tuple.hpp>
#include <boost/hana/unpack.hpp>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "moecod/moe/experts/run.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod {

/// Experts of different kinds, one module each, named `0`, `1`, ... in files.
///
/// Each may read another part of the input (its static function `input`) and return another tree; what they have in
/// common is the shape of the primary output.
template <class... Experts>
class Distinct : public torch::nn::Module, public experts::Execution {
  static_assert(sizeof...(Experts) >= 1, "moecod: Distinct<Experts...> needs at least one expert");
  template <class First, class...>
  struct first {
    using type = First;
  };

 public:
  using policy_kind = kind::experts;
  using rows = typename first<Experts...>::type::rows;
  static_assert((std::is_same_v<typename Experts::rows, rows> && ...),
                "moecod: the experts of Distinct must all take the same rows (rows::Images or rows::Positions)");
  static constexpr int64_t count = sizeof...(Experts);
  static constexpr bool stacked = false;
  struct Options {
    std::tuple<typename Experts::Options...> each;
  };
  template <class X>
  using parts = std::tuple<experts::Part<experts::output_t<Experts, X>>...>;

  explicit Distinct(const Options& options = {})
      : experts_(std::apply([](const auto&... each) { return Pointers{std::make_shared<Experts>(each)...}; },
                            options.each)) {
    int64_t e = 0;
    boost::hana::unpack(experts_, [&](auto&... expert) { (register_module(std::to_string(e++), expert), ...); });
  }

  /// Calls f(e, input of x, run) for each expert, where run(input) runs it; returns the results as a tuple.
  template <class X, class F>
  auto visit(const X& x, F&& f) {
    int64_t e = 0;
    auto one = [&]<class Expert>(const std::shared_ptr<Expert>& expert) {
      const int64_t index = e++;
      return f(index, experts::input_of(*expert, x),
               [&, index](const auto& in) { return experts::run(*expert, in, *this, index); });
    };
    return boost::hana::unpack(experts_, [&](const auto&... expert) { return parts<X>{one(expert)...}; });
  }

  template <class Parts>
  static Parts join(const Parts& all) {
    return all;
  }

  /// The parameters that have no gradient in a step in which expert e has no rows.
  std::vector<at::Tensor> parameters_of(int64_t e) const { return children()[e]->parameters(); }

  /// Calls f(e, expert, part) for each expert with its part of an output.
  template <class Parts, class F>
  void for_each(Parts&& all, F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (f(static_cast<int64_t>(I), *experts_[boost::hana::size_c<I>], std::get<I>(all)), ...);
    }(std::index_sequence_for<Experts...>{});
  }

  template <std::size_t I>
  auto& get() {
    return *experts_[boost::hana::size_c<I>];
  }

 private:
  using Pointers = boost::hana::tuple<std::shared_ptr<Experts>...>;
  Pointers experts_;
};

}  // namespace moecod
