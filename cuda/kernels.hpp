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

cudaError_t add_bias(const kernel::AddBias& arguments, cudaStream_t stream);
cudaError_t column_sums(const kernel::ColumnSums& arguments, cudaStream_t stream);
cudaError_t zero_idle(const kernel::ZeroIdle& arguments, cudaStream_t stream);
cudaError_t activate(const kernel::Activate& arguments, cudaStream_t stream);
cudaError_t activate_backward(const kernel::ActivateBackward& arguments, cudaStream_t stream);

/// Whether the device and the shape are such that conv and conv_weight run.
bool conv_takes(const kernel::ConvShape& shape);
/// Positions a piece of Conv::moments, where y has so many channels and groups.each positions an image.
int conv_piece(const kernel::Groups& groups, int channels);
cudaError_t conv(const kernel::Conv& arguments, cudaStream_t stream);
/// How many numbers a row Conv::partial has, for the gradient of weights.
int conv_gate_parts(const kernel::Conv& arguments);
/// The number of float32 that ConvWeight::partial must hold.
cudaError_t conv_weight_partial(const kernel::ConvWeight& arguments, int64_t* size);
cudaError_t conv_weight(const kernel::ConvWeight& arguments, cudaStream_t stream);

cudaError_t depthwise(const kernel::Depthwise& arguments, cudaStream_t stream);
cudaError_t depthwise_weight(const kernel::DepthwiseWeight& arguments, cudaStream_t stream);

bool depthwise_3x3_takes(int64_t channels, int64_t images, int height, int width);
cudaError_t depthwise_3x3(const kernel::Depthwise3x3& arguments, cudaStream_t stream);
cudaError_t depthwise_3x3_backward(const kernel::Depthwise3x3Backward& arguments, cudaStream_t stream);

cudaError_t layer_norm(const kernel::LayerNorm& arguments, cudaStream_t stream);
cudaError_t layer_norm_backward(const kernel::LayerNormBackward& arguments, cudaStream_t stream);

/// Fills `moments` ([groups.pieces(norm_piece), 2, C]) where no convolution has.
cudaError_t moments(const kernel::Normalise& arguments, float* moments, cudaStream_t stream);
cudaError_t normalise(const kernel::Normalise& arguments, cudaStream_t stream);
cudaError_t normalise_backward(const kernel::NormaliseBackward& arguments, cudaStream_t stream);

cudaError_t resample(const kernel::Resample& arguments, cudaStream_t stream);

}  // namespace moecod::cuda
