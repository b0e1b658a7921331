#include "moecod/kernel/layer_norm.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t layer_norm(const kernel::LayerNorm& arguments, cudaStream_t stream) {
  return kernel::layer_norm(arguments, stream);
}
cudaError_t layer_norm_backward(const kernel::LayerNormBackward& arguments, cudaStream_t stream) {
  return kernel::layer_norm_backward(arguments, stream);
}

}  // namespace moecod::cuda
