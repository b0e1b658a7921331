#include "moecod/kernel/resample.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t resample_backward(const kernel::ResampleBackward& arguments, cudaStream_t stream) {
  return kernel::resample_backward(arguments, stream);
}

}  // namespace moecod::cuda
