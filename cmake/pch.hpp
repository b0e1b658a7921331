// The one precompiled header of tests, examples and benchmarks. The public headers include what they need
// themselves (tests/headers checks that), so nothing depends on this file but the build time.
#pragma once
#include <torch/torch.h>
