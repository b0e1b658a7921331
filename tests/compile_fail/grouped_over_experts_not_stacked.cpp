// expect: dispatch::Grouped needs stacked experts: Replicated<Expert, N>
#include "moecod/moe/dispatch/grouped.hpp"
#include "parts.hpp"
constexpr auto n = use<moecod::Mixture<good::Router, good::Experts, good::Select, good::Balance, moecod::dispatch::Grouped>>;
