#pragma once
#include "moecod/moe/balance/state.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::balance {

/// No balancing: no bias, no loss, no state.
class None : public State {
 public:
  using policy_kind = kind::balance;
  struct Options {
    int64_t experts = 1;  ///< set by the mixture
  };
  None() = default;
  explicit None(const Options&) {}
};

}  // namespace moecod::balance
