// expect: Select \(concept moecod::names_kind\): needs `using policy_kind = kind::select`
#include "parts.hpp"
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Balance, good::Select, good::Dispatch>>;
