#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <optional>
#include <string_view>
#include <tuple>

/// The operators of `moecod::cuda`, found at run time.
///
/// A program that links `moecod::cuda`, or loads its library, has registered `torch.ops.moecod.*`; functions here then
/// use them for tensors on CUDA, and LibTorch's operations else, with the same results. No header asks at compile time
/// whether the library is there, so objects compiled with and without it mix.
namespace moecod::operators {

struct Select {
  static constexpr const char* name = "moecod::select";
  /// (logits, logit_bias, selection_bias, k, gate) -> scores, experts, weights, counts
  using signature = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, int64_t, std::string_view);
};

struct Plan {
  static constexpr const char* name = "moecod::plan";
  /// (experts, num_experts, assignments) -> order, offsets, position
  using signature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, int64_t, c10::SymInt);
};

struct Gather {
  static constexpr const char* name = "moecod::gather";
  /// (x, order, position, first) -> rows of x
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt);
};

struct Combine {
  static constexpr const char* name = "moecod::combine";
  /// (sorted, weights, order, position) -> y
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);
};

struct GroupedLinear {
  static constexpr const char* name = "moecod::grouped_linear";
  /// (x, weight, bias, offsets, activation, activation(x) where it is there already) -> activation(x) weight^T + bias,
  /// of each row's expert
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                               const at::Tensor&, std::string_view, const std::optional<at::Tensor>&);
};

struct GroupedSwiGlu {
  static constexpr const char* name = "moecod::grouped_swiglu";
  /// (x, weight, offsets, order, position) -> silu(g) u of [g, u] = x weight^T, of each row's expert; without gradients.
  /// With order and position the rows are those that Gather makes of x; a kernel does not write them.
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                               const std::optional<at::Tensor>&);
};

struct GroupedSwiGluKept {
  static constexpr const char* name = "moecod::grouped_swiglu_kept";
  /// (x, weight, offsets, order, position) -> h = x weight^T of each row's expert, and silu(g) u of [g, u] = h. The gradient
  /// goes through h: the second is for GroupedLinear, which takes both. Order and position: as of GroupedSwiGlu.
  using signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       const std::optional<at::Tensor>&,
                                                       const std::optional<at::Tensor>&);
};

struct GroupedSwiGluCombine {
  static constexpr const char* name = "moecod::grouped_swiglu_combine";
  /// (h, swiglu(h), weight, offsets, weights [N, S], order, position) -> what Combine makes of the rows
  /// swiglu(h) weight^T, and these
  using signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       const at::Tensor&);
};

struct GroupedConv2d {
  static constexpr const char* name = "moecod::grouped_conv2d";
  /// (x, weight, offsets, padding, dilation, whether moments are wanted) -> y, moments for GroupedBatchNorm or nothing
  using signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       at::IntArrayRef, at::IntArrayRef, bool);
};

struct Conv2dTakes {
  static constexpr const char* name = "moecod::conv2d_takes";
  /// (channels in and out, height, width, kernel, padding, dilation) -> whether the current device has a kernel of
  /// GroupedConv2d for such images in bfloat16
  using signature = bool(int64_t, int64_t, int64_t, int64_t, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef);
};

struct GroupedDepthwiseConv2d {
  static constexpr const char* name = "moecod::grouped_depthwise_conv2d";
  /// (x, weight, bias, offsets, padding, dilation, whether GELU follows) -> y
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&,
                               at::IntArrayRef, at::IntArrayRef, bool);
};

struct GroupedBatchNorm {
  static constexpr const char* name = "moecod::grouped_batch_norm";
  /// (x, weight, bias, running_mean, running_var, num_batches_tracked, offsets, moments, whether batch statistics are
  /// used, whether the running ones move, momentum, eps, whether ReLU follows) -> y, what was used
  using signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       at::Tensor, at::Tensor, at::Tensor, const at::Tensor&,
                                                       const std::optional<at::Tensor>&, bool, bool, double, double,
                                                       bool);
};

struct GroupedLayerNorm {
  static constexpr const char* name = "moecod::grouped_layer_norm";
  /// (x, weight, bias, offsets, eps) -> y
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double);
};

struct Resize {
  static constexpr const char* name = "moecod::resize";
  /// (map, height, width, whether corners lie on corners) -> map of that height and width; without a derivative
  using signature = at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt, bool);
};

struct ResizeBackward {
  static constexpr const char* name = "moecod::resize_backward";
  /// (gradient of a map resized, height and width before it, whether corners lay on corners) -> gradient of the map
  using signature = at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt, bool);
};

struct AveragePoolBackward {
  static constexpr const char* name = "moecod::average_pool_backward";
  /// (gradient of a map pooled, height and width before it) -> gradient of the map
  using signature = at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt);
};

struct MaxPoolBackward {
  static constexpr const char* name = "moecod::max_pool_backward";
  /// (gradient of a map pooled, the index of what each output took, height and width before it) -> gradient of the map
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt);
};

struct Fallbacks {
  static constexpr const char* name = "moecod::fallbacks";
  using signature = int64_t();
};

/// The operator, or null while no library has registered it. Libraries with operators are not to be unloaded.
template <class Operator>
const c10::TypedOperatorHandle<typename Operator::signature>* find() {
  using Handle = c10::TypedOperatorHandle<typename Operator::signature>;
  static std::atomic<const Handle*> cached{nullptr};
  if (const Handle* handle = cached.load(std::memory_order_acquire)) return handle;
  const auto found = c10::Dispatcher::singleton().findSchema({Operator::name, ""});
  if (!found) return nullptr;
  static const Handle handle = found->template typed<typename Operator::signature>();
  cached.store(&handle, std::memory_order_release);
  return &handle;
}

/// The operator if it is registered and works where `tensor` is; null else.
template <class Operator>
const c10::TypedOperatorHandle<typename Operator::signature>* find_for(const at::Tensor& tensor) {
  return tensor.is_cuda() ? find<Operator>() : nullptr;
}

/// How many calls on CUDA, forward or backward, had shapes or types that no kernel takes, and so ran LibTorch's operations. Of the
/// process, since its start. Not counted: products by at::_grouped_mm (compute capability 10.0, or kernels built without 90a)
/// and those of one expert alone. 0 without the library, so ask `find` as well whether it is there.
inline int64_t fallbacks() {
  const auto* count = find<Fallbacks>();
  return count ? count->call() : 0;
}

}  // namespace moecod::operators
