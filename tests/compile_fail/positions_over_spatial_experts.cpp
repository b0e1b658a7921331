// expect: routing by position over spatial experts \(rows::Images\) is possible with dispatch::Masked only
#include "parts.hpp"
constexpr auto n = use<moecod::Mixture<good::PositionRouter, good::Experts, good::Select, good::Balance, good::Dispatch>>;
