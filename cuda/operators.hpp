#pragma once
#include <ATen/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdint>
#include <initializer_list>
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

/// A tensor as kernels read it: contiguous, in vectors of 16 bytes.
inline at::Tensor readable(const at::Tensor& t, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  const at::Tensor dense = t.contiguous(format);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone();
}

inline void check_offsets(const char* name, const at::Tensor& offsets, const c10::SymInt& experts) {
  TORCH_CHECK(offsets.dim() == 1 && offsets.sym_size(0) == experts + 1 && offsets.scalar_type() == at::kInt, name,
              ": offsets must be [E + 1] int32, got ", offsets.sym_sizes(), " ", offsets.scalar_type());
}

/// An operator's argument, which may be missing.
struct Argument {
  const char* name;
  std::optional<at::Tensor> tensor;
};

/// Errors: c10::Error if a tensor that is there lies elsewhere than the first.
inline void check_devices(const char* name, const char* first, const at::Tensor& x, std::initializer_list<Argument> others) {
  for (const auto& [other, tensor] : others)
    TORCH_CHECK(!tensor || !tensor->defined() || tensor->device() == x.device(), name, ": ", other, " must be where ", first,
                " is, on ", x.device(), ", got one on ", tensor->device());
}

/// Errors: c10::Error if a tensor has other sizes, or another type or device than one that is known to be right.
inline void check_like(const char* name, const char* argument, const at::Tensor& t, c10::SymIntArrayRef sizes,
                       const at::Tensor& like) {
  TORCH_CHECK(t.sym_sizes() == sizes && t.scalar_type() == like.scalar_type() && t.device() == like.device(), name, ": ", argument,
              " must be ", sizes, " ", like.scalar_type(), " on ", like.device(), ", got ", t.sym_sizes(), " ", t.scalar_type(), " on ",
              t.device());
}

/// Calls f(e, first item, last item) for the experts that have some of the rows, of `each` items.
/// Synchronises: for rows on CUDA, where there are some, of more than one expert.
template <class F>
void each_expert(const at::Tensor& rows, const at::Tensor& offsets, F&& f, int64_t each = 1) {
  if (rows.size(0) == 0) return;
  if (offsets.numel() == 2) {
    f(0, 0, each * rows.size(0));
    return;
  }
  const at::Tensor host = offsets.cpu().contiguous();
  const int32_t* bounds = host.const_data_ptr<int32_t>();
  for (int64_t e = 0; e + 1 < host.numel(); ++e)
    if (bounds[e] < bounds[e + 1]) f(e, each * bounds[e], each * bounds[e + 1]);
}

/// Items a row of x [M, ..., width].
inline int64_t items_a_row(const at::Tensor& x) { return x.size(0) > 0 ? x.numel() / x.size(0) / x.size(-1) : 1; }

inline kernel::Groups groups_of(const at::Tensor& offsets, int64_t rows, int64_t each) {
  return {.offsets = offsets.const_data_ptr<int32_t>(),
          .experts = static_cast<int>(offsets.size(0) - 1),
          .rows = rows,
          .each = each};
}

template <class Operator, class... Arguments>
auto call(const Arguments&... arguments) {
  return operators::find<Operator>()->call(arguments...);
}

/// The backward pass of operators::Gather.
struct GatherBackward {
  static constexpr const char* name = "moecod::gather_backward";
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt);
};

inline std::optional<at::Tensor> if_defined(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

}  // namespace moecod::cuda
