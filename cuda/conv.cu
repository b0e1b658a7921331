#include "moecod/kernel/conv.cuh"

#include "cuda/kernels.hpp"
#include "moecod/kernel/conv_weight.cuh"

namespace moecod::cuda {

bool conv_takes(const kernel::ConvShape& shape) { return kernel::conv_takes(shape); }
int conv_piece(const kernel::Groups& groups, int channels) { return kernel::conv_piece(groups, channels); }
cudaError_t conv(const kernel::Conv& arguments, cudaStream_t stream) { return kernel::conv(arguments, stream); }
int conv_gate_parts(const kernel::Conv& arguments) { return kernel::conv_gate_parts(arguments); }
cudaError_t conv_weight_partial(const kernel::ConvWeight& arguments, int64_t* size) {
  return kernel::conv_weight_partial(arguments, size);
}
cudaError_t conv_weight(const kernel::ConvWeight& arguments, cudaStream_t stream) {
  return kernel::conv_weight(arguments, stream);
}

}  // namespace moecod::cuda
