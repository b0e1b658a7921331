#include "moecod/kernel/plan.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t plan_workspace(int64_t items, int num_experts, int64_t* size) {
  return kernel::plan_workspace(items, num_experts, size);
}
cudaError_t plan(const kernel::Plan& arguments, cudaStream_t stream) { return kernel::plan(arguments, stream); }

}  // namespace moecod::cuda
