#pragma once

namespace moecod {

/// True while a forward pass is being repeated for the sake of its gradients (core/recompute.hpp): layers with
/// running statistics then leave them alone, since the first pass has moved them already.
inline bool& recomputing() {
  thread_local bool flag = false;
  return flag;
}

}  // namespace moecod
