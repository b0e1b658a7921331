// expect: moecod::says_position_weights\): needs the constants `needs_stacked` and `position_weights`
#include "parts.hpp"
struct Dispatch {
  using policy_kind = moecod::kind::dispatch;
  static constexpr bool needs_stacked = false;
};
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Select, good::Balance, Dispatch>>;
