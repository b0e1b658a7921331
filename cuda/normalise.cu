#include "moecod/kernel/normalise.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t moments(const kernel::Normalise& arguments, float* moments, cudaStream_t stream) {
  return kernel::moments(arguments, moments, stream);
}
cudaError_t normalise(const kernel::Normalise& arguments, cudaStream_t stream) {
  return kernel::normalise(arguments, stream);
}
cudaError_t normalise_backward(const kernel::NormaliseBackward& arguments, cudaStream_t stream) {
  return kernel::normalise_backward(arguments, stream);
}

}  // namespace moecod::cuda
