#include "moecod/kernel/select.cuh"

#include "cuda/kernels.hpp"

namespace moecod::cuda {

cudaError_t select_forward(const kernel::SelectForward& arguments, cudaStream_t stream) {
  return kernel::select_forward(arguments, stream);
}
cudaError_t select_backward(const kernel::SelectBackward& arguments, cudaStream_t stream) {
  return kernel::select_backward(arguments, stream);
}

}  // namespace moecod::cuda
