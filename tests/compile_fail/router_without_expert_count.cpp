// expect: Router \(concept moecod::options_count_experts, moecod::made_from_options\): needs `Options::experts`
#include "parts.hpp"
struct Router : good::Router {
  struct Options {};
  explicit Router(const Options&) {}
};
constexpr auto n = use<moecod::Mixture<Router, good::Experts, good::Select, good::Balance, good::Dispatch>>;
