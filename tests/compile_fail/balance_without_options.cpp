// expect: Balance \(concept moecod::names_kind, moecod::has_options\): needs `using policy_kind = kind::balance`
#include "parts.hpp"
struct Balance : torch::nn::Module {
  using policy_kind = moecod::kind::balance;
};
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Select, Balance, good::Dispatch>>;
