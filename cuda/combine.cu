#include "moecod/kernel/combine.cuh"

#include "cuda/kernels.hpp"
#include "moecod/kernel/gather.cuh"

namespace moecod::cuda {

cudaError_t gather(const kernel::Gather& arguments, cudaStream_t stream) { return kernel::gather(arguments, stream); }
cudaError_t combine_forward(const kernel::Combine& arguments, cudaStream_t stream) {
  return kernel::combine_forward(arguments, stream);
}
int combine_backward_splits(const kernel::CombineBackward& arguments) {
  return kernel::combine_backward_splits(arguments);
}
cudaError_t combine_backward(const kernel::CombineBackward& arguments, cudaStream_t stream) {
  return kernel::combine_backward(arguments, stream);
}

}  // namespace moecod::cuda
