#include "moecod/kernel/depthwise.cuh"

#include "cuda/kernels.hpp"
#include "moecod/kernel/depthwise_3x3.cuh"

namespace moecod::cuda {

cudaError_t depthwise(const kernel::Depthwise& arguments, cudaStream_t stream) {
  return kernel::depthwise(arguments, stream);
}
cudaError_t depthwise_weight(const kernel::DepthwiseWeight& arguments, cudaStream_t stream) {
  return kernel::depthwise_weight(arguments, stream);
}
bool depthwise_3x3_takes(int64_t channels, int64_t images, int height, int width) {
  return kernel::depthwise_3x3_takes(channels, images, height, width);
}
cudaError_t depthwise_3x3(const kernel::Depthwise3x3& arguments, cudaStream_t stream) {
  return kernel::depthwise_3x3(arguments, stream);
}
cudaError_t depthwise_3x3_backward(const kernel::Depthwise3x3Backward& arguments, cudaStream_t stream) {
  return kernel::depthwise_3x3_backward(arguments, stream);
}

}  // namespace moecod::cuda
