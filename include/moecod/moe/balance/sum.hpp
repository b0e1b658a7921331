#pragma once
#include <boost/hana/for_each.hpp>
#include <boost/hana/tuple.hpp>
#include <boost/hana/unpack.hpp>

#include <memory>
#include <string>
#include <tuple>

#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/concepts.hpp"

namespace moecod::balance {

/// Several policies at once: losses add up, each bias goes where its policy puts it.
///
/// Example: Sum<LossFree, RouterZ>. At most one member may bias the logits and at most one the selection; two would
/// fight over the same load.
template <class... Policies>
class Sum : public State {
  static constexpr int logit_biases = (int(has_logit_bias<Policies>) + ... + 0);
  static constexpr int selection_biases = (int(has_selection_bias<Policies>) + ... + 0);
  static_assert(sizeof...(Policies) >= 1, "moecod: balance::Sum needs at least one policy");
  static_assert(logit_biases <= 1 && selection_biases <= 1,
                "moecod: balance::Sum takes at most one policy with a logit_bias and one with a selection_bias");

 public:
  using policy_kind = kind::balance;
  using members_count = void;  ///< commit finds the members, which are submodules
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
    std::tuple<typename Policies::Options...> each;
  };

  Sum() : Sum(Options()) {}
  explicit Sum(const Options& options) : policies_(make(options)) {
    int index = 0;
    boost::hana::for_each(policies_,
                          [&](auto& policy) { this->register_module(std::to_string(index++), policy); });
  }

  at::Tensor logit_bias() const
    requires(logit_biases > 0)
  {
    at::Tensor bias;
    boost::hana::for_each(policies_, [&](const auto& policy) {
      if constexpr (has_logit_bias<std::remove_cvref_t<decltype(*policy)>>) bias = policy->logit_bias();
    });
    return bias;
  }

  at::Tensor selection_bias() const
    requires(selection_biases > 0)
  {
    at::Tensor bias;
    boost::hana::for_each(policies_, [&](const auto& policy) {
      if constexpr (has_selection_bias<std::remove_cvref_t<decltype(*policy)>>) bias = policy->selection_bias();
    });
    return bias;
  }

  at::Tensor loss(const Routing& routing) const
    requires((has_auxiliary_loss<Policies> || ...))
  {
    at::Tensor total;
    boost::hana::for_each(policies_, [&](const auto& policy) {
      if constexpr (has_auxiliary_loss<std::remove_cvref_t<decltype(*policy)>>) {
        const at::Tensor term = policy->loss(routing);
        total = total.defined() ? total + term : term;
      }
    });
    return total;
  }

  void count(const Routing& routing)
    requires((counts_load<Policies> || ...))
  {
    boost::hana::for_each(policies_, [&](auto& policy) {
      if constexpr (counts_load<std::remove_cvref_t<decltype(*policy)>>) policy->count(routing);
    });
  }

 private:
  using Pointers = boost::hana::tuple<std::shared_ptr<Policies>...>;

  static Pointers make(const Options& options) {
    return std::apply(
        [&](auto... each) {
          ((each.experts = options.experts), ...);
          return Pointers{std::make_shared<Policies>(each)...};
        },
        options.each);
  }

  Pointers policies_;
};

}  // namespace moecod::balance
