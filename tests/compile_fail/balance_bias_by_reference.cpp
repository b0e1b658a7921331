// expect: Balance \(concept moecod::has_selection_bias\): must be `at::Tensor selection_bias\(\) const`
#include "parts.hpp"
struct Balance : torch::nn::Module {
  using policy_kind = moecod::kind::balance;
  struct Options {
    int64_t experts = 1;
  };
  explicit Balance(const Options&) {}
  const at::Tensor& selection_bias() const { return bias; }
  at::Tensor bias;
};
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Select, Balance, good::Dispatch>>;
