#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <vector>

namespace moecod::train {

/// Values on a device, through pinned memory for CUDA, on the current stream. Synchronises: never.
/// Errors: c10::Error if the shape has not as many elements as there are values.
template <class T>
at::Tensor upload(const std::vector<T>& values, at::IntArrayRef shape, at::Device device) {
  const at::Tensor host = at::empty(
      shape, at::TensorOptions(c10::CppTypeToScalarType<T>::value).pinned_memory(device.is_cuda()));
  TORCH_CHECK(std::size_t(host.numel()) == values.size(), "upload: a tensor of shape ", shape, " has not ",
              values.size(), " elements");
  if (!values.empty()) std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace moecod::train
