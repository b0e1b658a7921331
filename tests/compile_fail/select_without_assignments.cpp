// expect: Select \(concept moecod::counts_assignments\): needs `static int64_t assignments\(
#include "parts.hpp"
struct Select {
  using policy_kind = moecod::kind::select;
  static moecod::Routing select(const at::Tensor&, const at::Tensor&, bool) { return {}; }
};
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, Select, good::Balance, good::Dispatch>>;
