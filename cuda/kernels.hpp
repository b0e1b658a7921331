#pragma once
#include <cuda_runtime_api.h>

#include "moecod/kernel/arguments.hpp"

/// The kernels as compiled by nvcc, a source file a family. Each launches on the stream and returns the launch's error.
namespace moecod::cuda {

cudaError_t select_forward(const kernel::SelectForward& arguments, cudaStream_t stream);
cudaError_t select_backward(const kernel::SelectBackward& arguments, cudaStream_t stream);

/// The number of int32 that `workspace` must hold.
cudaError_t plan_workspace(int64_t items, int num_experts, int64_t* size);
cudaError_t plan(const kernel::Plan& arguments, cudaStream_t stream);

cudaError_t gather(const kernel::Gather& arguments, cudaStream_t stream);
cudaError_t combine_forward(const kernel::Combine& arguments, cudaStream_t stream);
/// The number of parts in `partial`; 1: not needed.
int combine_backward_splits(const kernel::CombineBackward& arguments);
cudaError_t combine_backward(const kernel::CombineBackward& arguments, cudaStream_t stream);

}  // namespace moecod::cuda
