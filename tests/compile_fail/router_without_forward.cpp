// expect: Router \(concept moecod::routes\): needs `at::Tensor forward\(const X&\)`
#include "parts.hpp"
struct Router : good::Router {
  using good::Router::Router;
  void forward(int) {}
};
using Mixture = moecod::Mixture<Router, good::Experts, good::Select, good::Balance, good::Dispatch>;
moecod::Routing route(Mixture& mixture, const at::Tensor& x) { return mixture.route(x); }
