// expect: balance::Sum takes at most one policy with a logit_bias and one with a selection_bias
#include "moecod/moe/balance/loss_free.hpp"
#include "moecod/moe/balance/smooth_bias.hpp"
#include "moecod/moe/balance/sum.hpp"
constexpr auto n = sizeof(moecod::balance::Sum<moecod::balance::LossFree, moecod::balance::SmoothBias>);
