// compiles
#include "parts.hpp"
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Select, good::Balance, good::Dispatch>>;
static_assert(n > 0);
