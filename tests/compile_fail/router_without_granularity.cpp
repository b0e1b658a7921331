// expect: Router \(concept moecod::has_granularity\): needs the member type `granularity`
#include "parts.hpp"
struct Router : good::Router {
  using good::Router::Router;
 private:
  using granularity = void;
};
constexpr auto n = use<moecod::Mixture<Router, good::Experts, good::Select, good::Balance, good::Dispatch>>;
