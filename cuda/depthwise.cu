#include "moecod/kernel/depthwise.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t depthwise(const kernel::Depthwise& arguments, cudaStream_t stream) {
  return kernel::depthwise(arguments, stream);
}
cudaError_t depthwise_weight(const kernel::DepthwiseWeight& arguments, cudaStream_t stream) {
  return kernel::depthwise_weight(arguments, stream);
}

}  // namespace moecod::cuda
