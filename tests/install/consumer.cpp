// What a project outside of this one sees after `cmake --install`.
#include <ATen/ops/rand.h>

#include <iostream>

#include "moecod/core/operators.hpp"
#include "moecod/moe/select/top_k.hpp"

int main() {
  const moecod::Routing routing = moecod::select::TopK<2>::select(at::rand({8, 4}), {}, /*training=*/true);
  const moecod::Plan plan(routing);
  std::cout << plan.offsets << '\n';
#ifdef HAS_KERNELS
  if (!moecod::operators::find<moecod::operators::Select>()) return 2;
#endif
  return plan.order.size(0) == 16 ? 0 : 1;
}
