#pragma once
// Settings of the policies for runs of some hundred steps: the ablation's, and train_feature_level_moe's preset "demo".
// A policy that is not named here keeps its defaults; the auxiliary losses keep theirs, which are the published weights.

#include "moecod/moe/moe.hpp"

namespace moecod::examples::ablation {

template <class Options>
void settle(Options&) {}

// Biases must be able to travel: their defaults are for tens of thousands of steps.
// EmaBias adds to the logits, which routers hold within +-10: a smaller limit cannot move a router that stands there.
inline void settle(balance::EmaBias::Options& o) { o.rate = 0.1, o.decay = 0.9, o.limit = 20; }
inline void settle(balance::LossFree::Options& o) { o.rate = 5e-3; }
inline void settle(balance::SmoothBias::Options& o) { o.rate = 5e-3; }

}  // namespace moecod::examples::ablation
