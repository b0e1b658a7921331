// expect: Select \(concept moecod::selects\): needs `static Routing select\(
#include "parts.hpp"
struct Select {
  using policy_kind = moecod::kind::select;
  static std::int64_t assignments(std::int64_t rows, std::int64_t) { return rows; }
};
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, Select, good::Balance, good::Dispatch>>;
