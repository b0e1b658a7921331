#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

namespace moecod::layers::detail {

/// A tensor whose values follow from sizes alone, as the matrix that resizes `in` samples to `out`: make(in, out, variant),
/// on the host.
using MakeTensor = at::Tensor (*)(int64_t in, int64_t out, bool variant);

/// Such a tensor in the dtype and on the device of `options`. On a GPU it is kept for good, so that layers upload nothing
/// while their work is recorded as a device graph; the first call for a size waits for the copy. For any threads.
inline at::Tensor size_tensor(MakeTensor make, int64_t in, int64_t out, bool variant, const at::TensorOptions& options) {
  if (!options.device().is_cuda()) return make(in, out, variant).to(options);
  using Key = std::tuple<MakeTensor, int64_t, int64_t, bool, c10::ScalarType, c10::DeviceIndex>;
  static std::mutex mutex;
  static auto& kept = *new std::map<Key, at::Tensor>;  // never destroyed: the device may be gone when statics are
  const std::lock_guard lock(mutex);
  const c10::InferenceMode normal(false);  // one made for inference could not serve a training step
  at::Tensor& tensor = kept[{make, in, out, variant, c10::typeMetaToScalarType(options.dtype()), options.device().index()}];
  if (!tensor.defined()) tensor = make(in, out, variant).to(options);
  return tensor;
}

}  // namespace moecod::layers::detail
