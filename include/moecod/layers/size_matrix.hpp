#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

namespace moecod::layers::detail {

/// A matrix whose entries follow from sizes alone: make(in, out, variant), float64 on the host.
using MakeMatrix = at::Tensor (*)(int64_t in, int64_t out, bool variant);

/// Such a matrix in the dtype and on the device of `options`. On a GPU it is kept for good, so that layers upload nothing
/// while their work is recorded as a device graph; the first call for a size waits for the copy. For any threads.
inline at::Tensor size_matrix(MakeMatrix make, int64_t in, int64_t out, bool variant, const at::TensorOptions& options) {
  if (!options.device().is_cuda()) return make(in, out, variant).to(options);
  using Key = std::tuple<MakeMatrix, int64_t, int64_t, bool, c10::ScalarType, c10::DeviceIndex>;
  static std::mutex mutex;
  static auto& kept = *new std::map<Key, at::Tensor>;  // never destroyed: the device may be gone when statics are
  const std::lock_guard lock(mutex);
  at::Tensor& matrix = kept[{make, in, out, variant, c10::typeMetaToScalarType(options.dtype()), options.device().index()}];
  if (!matrix.defined()) matrix = make(in, out, variant).to(options);
  return matrix;
}

}  // namespace moecod::layers::detail
