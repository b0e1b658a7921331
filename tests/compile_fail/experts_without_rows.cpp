// expect: Experts \(concept moecod::has_rows\): each expert needs the member type `rows`
#include "parts.hpp"
struct Experts : good::Experts {
  using good::Experts::Experts;
  using rows = void;
};
constexpr auto n = use<moecod::Mixture<good::Router, Experts, good::Select, good::Balance, good::Dispatch>>;
