#include "moecod/kernel/resample.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t resample(const kernel::Resample& arguments, cudaStream_t stream) {
  return kernel::resample(arguments, stream);
}

}  // namespace moecod::cuda
