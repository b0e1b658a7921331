#include "cuda/kernels.hpp"
#include "moecod/kernel/activation.cuh"
#include "moecod/kernel/columns.cuh"

namespace moecod::cuda {

cudaError_t add_bias(const kernel::AddBias& arguments, cudaStream_t stream) {
  return kernel::add_bias(arguments, stream);
}
cudaError_t column_sums(const kernel::ColumnSums& arguments, cudaStream_t stream) {
  return kernel::column_sums(arguments, stream);
}
cudaError_t zero_idle(const kernel::ZeroIdle& arguments, cudaStream_t stream) {
  return kernel::zero_idle(arguments, stream);
}
cudaError_t activate(const kernel::Activate& arguments, cudaStream_t stream) {
  return kernel::activate(arguments, stream);
}
cudaError_t activate_backward(const kernel::ActivateBackward& arguments, cudaStream_t stream) {
  return kernel::activate_backward(arguments, stream);
}

}  // namespace moecod::cuda
