#pragma once
#include <ATen/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdint>
#include <optional>

#include "moecod/core/operators.hpp"
#include "moecod/kernel/arguments.hpp"

/// What the files that register operators share.
namespace moecod::cuda {

inline std::atomic<int64_t> fallback_count{0};

/// `takes`, and counts where a kernel does not take what it was given.
inline bool kernel_takes(bool takes) {
  if (!takes) ++fallback_count;
  return takes;
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }

/// The kernels' name for a tensor's dtype, if they have one.
inline std::optional<kernel::Type> kernel_type(const at::Tensor& t) {
  if (t.scalar_type() == at::kFloat) return kernel::Type::float32;
  if (t.scalar_type() == at::kBFloat16) return kernel::Type::bfloat16;
  if (t.scalar_type() == at::kHalf) return kernel::Type::float16;
  return std::nullopt;
}

/// Whether kernels can read the tensor in vectors of 16 bytes.
inline bool aligned(const at::Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

template <class Operator, class... Arguments>
auto call(const Arguments&... arguments) {
  return operators::find<Operator>()->call(arguments...);
}

inline std::optional<at::Tensor> if_defined(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

}  // namespace moecod::cuda
