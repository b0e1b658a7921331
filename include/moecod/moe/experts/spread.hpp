#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "moecod/core/state.hpp"

namespace moecod::distributed {
class Group;
}

namespace moecod::experts {

/// Stacked experts of which each rank of a group may hold its own share, as dispatch::ExpertParallel runs them; changed by
/// distributed/spread_experts.hpp.
struct Spread : StackedStorage {
  /// Replaces every parameter and buffer by each(it), which holds the experts [first, first + count). Gradients go.
  virtual void hold(int64_t first, int64_t count, const std::function<at::Tensor(const at::Tensor&)>& each) = 0;

  bool wanted = false;                        ///< the mixture's dispatcher can run them spread
  std::shared_ptr<distributed::Group> ranks;  ///< over which they are spread; none: all are here
};

}  // namespace moecod::experts
