#pragma once

#include <torch/cuda.h>

#include <string>

namespace moecod::examples {

/// "auto", "cpu" or "cuda", the first GPU.
inline at::Device device_named(const std::string& name) {
  const bool cuda = name == "cuda" || (name == "auto" && torch::cuda::is_available());
  return cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

}  // namespace moecod::examples
