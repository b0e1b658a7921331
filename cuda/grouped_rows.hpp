#pragma once
#include <ATen/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/cuda/CUDAException.h>

#include <array>
#include <limits>
#include <string_view>
#include <tuple>

#include "cuda/grouped_images.hpp"
#include "cuda/kernels.hpp"
#include "cuda/operators.hpp"
#include "moecod/layers/activation.hpp"

/// What the operators on rows sorted by expert share: their products and activations.
namespace moecod::cuda {

using at::Tensor;
using layers::Activation;

inline c10::SymDimVector with_width(const Tensor& x, const c10::SymInt& width) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = width;
  return sizes;
}

/// x as [items, width], as kernels read it.
inline Tensor flat(const Tensor& x) { return readable(x.reshape({-1, x.size(-1)})); }

/// d_h of activation(h).
inline Tensor activation_backward(const Tensor& grad, const Tensor& h, Activation activation) {
  switch (activation) {
    case Activation::none: return grad;
    case Activation::gelu: return at::gelu_backward(grad, h);
    case Activation::swiglu: {
      const auto parts = h.chunk(2, -1);
      const Tensor s = at::sigmoid(parts[0]);
      return at::cat({grad * parts[1] * s * (1 + parts[0] * (1 - s)), grad * parts[0] * s}, -1);
    }
  }
  return {};
}

/// Whether there is one expert, whose products are LibTorch's own.
inline bool is_alone(const Tensor& weight) { return weight.size(0) == 1; }

/// What one of the kernels takes, with the offsets on the device.
inline bool takes(const Tensor& x, const Tensor& weight) {
  const int major = at::cuda::getCurrentDeviceProperties()->major;
  return x.scalar_type() == at::kBFloat16 && (is_alone(weight) || major == 9 || major == 10) && weight.size(1) % 8 == 0 &&
         weight.size(2) % 8 == 0 && weight.size(0) < 1024 && x.numel() > 0 &&
         x.numel() / x.size(-1) < std::numeric_limits<int32_t>::max();
}

/// All items as rows of a matrix, sorted by expert.
struct Rows {
  Tensor offsets;
  kernel::Groups groups;
  Tensor ends() const { return offsets.slice(0, 1); }
};
inline Rows rows_of(const Tensor& x, const Tensor& offsets) {
  const int64_t each = items_a_row(x);
  const Tensor at = each == 1 ? offsets.contiguous() : offsets * each;
  return {at, groups_of(at, x.size(0) * each, 1)};
}

/// A linear layer is a convolution of images of one position.
inline kernel::ConvShape linear_shape(const Tensor& weight) {
  return {.height = 1,
          .width = 1,
          .in = static_cast<int>(weight.size(2)),
          .out = static_cast<int>(weight.size(1))};
}
/// Whether the convolution's kernels run the experts' products.
inline bool by_conv(const Tensor& weight) {
  return !is_alone(weight) && weight.size(0) <= kernel::max_experts && conv_takes(linear_shape(weight));
}

/// x weight^T, or x weight with `transposed`.
inline Tensor product(const Tensor& x, const Tensor& weight, const Rows& rows, bool transposed) {
  if (is_alone(weight)) return at::matmul(x, transposed ? weight[0] : weight[0].t());
  if (!by_conv(weight)) return at::_grouped_mm(x, transposed ? weight : weight.transpose(1, 2), rows.ends());
  const Tensor y = at::empty({x.size(0), weight.size(transposed ? 2 : 1)}, x.options());
  C10_CUDA_CHECK(conv({.groups = rows.groups,
                       .shape = linear_shape(weight),
                       .transposed = transposed,
                       .x = x.const_data_ptr(),
                       .weight = weight.const_data_ptr(),
                       .y = y.mutable_data_ptr()},
                      stream()));
  return y;
}

/// Rows [N, width] that a kernel sorts as it loads them: sorted row i is that of slot order[i] of N S.
struct Unsorted {
  Tensor order;   // [M] int32
  int slots = 0;  // S
  const int32_t* data() const { return order.defined() ? order.const_data_ptr<int32_t>() : nullptr; }
  static Unsorted by(const Tensor& order, const Tensor& position) {
    return {order.contiguous(), static_cast<int>(position.size(1))};
  }
};

/// grad^T a of each expert, by the convolution's kernel; of one of them the rows may not be sorted yet.
inline Tensor weight_gradient_by_conv(const Tensor& grad, const Tensor& a, const Tensor& weight, const Rows& rows,
                                      kernel::ConvWeight::Gathers gathers = kernel::ConvWeight::Gathers::none,
                                      const Unsorted& unsorted = {}) {
  const Tensor d_weight = at::empty_like(weight);
  run_conv_weight({.groups = rows.groups,
                   .shape = linear_shape(weight),
                   .x = a.const_data_ptr(),
                   .grad = grad.const_data_ptr(),
                   .gathers = gathers,
                   .order = unsorted.data(),
                   .slots = unsorted.slots,
                   .d_weight = d_weight.mutable_data_ptr()},
                  a.options());
  return d_weight;
}

/// grad^T a of each expert.
inline Tensor weight_gradient(const Tensor& grad, const Tensor& a, const Tensor& weight, const Rows& rows) {
  if (is_alone(weight)) return at::matmul(grad.t(), a).unsqueeze(0);
  if (by_conv(weight)) return weight_gradient_by_conv(grad, a, weight, rows);
  const Tensor d_weight = at::_grouped_mm(grad.t(), a, rows.ends());
  // A product over no rows is zero; the kernel does not promise it.
  C10_CUDA_CHECK(zero_idle({.groups = rows.groups,
                            .row_bytes = d_weight.size(1) * d_weight.size(2) * 2,
                            .x = d_weight.mutable_data_ptr()},
                           stream()));
  return d_weight;
}

inline kernel::Activation kind(Activation activation) {
  return activation == Activation::gelu ? kernel::Activation::gelu : kernel::Activation::swiglu;
}

inline Tensor activated(const Tensor& h, Activation activation, int64_t width) {
  if (activation == Activation::none) return h;
  const Tensor a = at::empty({h.size(0), width}, h.options());
  C10_CUDA_CHECK(activate({.h = h.const_data_ptr(),
                           .rows = h.size(0),
                           .width = width,
                           .activation = kind(activation),
                           .type = kernel::Type::bfloat16,
                           .a = a.mutable_data_ptr()},
                          stream()));
  return a;
}

/// How rows sorted by expert are combined: by weights [N, S] float32 of their slots.
struct Combined {
  Tensor weights;
  Unsorted unsorted;    // the gradient of the combination
  bool learns = false;  // the gradient of the weights is needed
};

/// d_h of activation(h) from the gradient d_a of its result, and that result computed anew where it is wanted.
inline std::tuple<Tensor, Tensor> through_activation(const Tensor& d_a, const Tensor& h, Activation activation,
                                                     bool wants_a) {
  const Tensor d_h = at::empty_like(h), a = wants_a ? at::empty_like(d_a) : Tensor();
  C10_CUDA_CHECK(activate_backward({.d_a = d_a.const_data_ptr(),
                                    .h = h.const_data_ptr(),
                                    .rows = h.size(0),
                                    .width = d_a.size(1),
                                    .activation = kind(activation),
                                    .type = kernel::Type::bfloat16,
                                    .d_h = d_h.mutable_data_ptr(),
                                    .a = wants_a ? a.mutable_data_ptr() : nullptr},
                                   stream()));
  return {d_h, a};
}

/// d_h of swiglu(h), and a computed anew, from the gradient of the layer that it goes into. With `by`, of a combination of
/// that layer's rows, whose gradient `grad` is, [N, out]: a as large as it counts there, and where they learn the gradient of
/// the weights.
inline std::tuple<Tensor, Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& h, const Tensor& weight,
                                                        const Rows& rows, const Combined& by = {}) {
  const Tensor d_h = at::empty_like(h), a = at::empty({h.size(0), weight.size(2)}, h.options());
  kernel::Conv arguments{.groups = rows.groups,
                         .shape = linear_shape(weight),
                         .transposed = true,
                         .gated = true,
                         .x = grad.const_data_ptr(),
                         .weight = weight.const_data_ptr(),
                         .y = d_h.mutable_data_ptr(),
                         .h = h.data_ptr(),
                         .a = a.mutable_data_ptr()};
  Tensor d_weights, partial;
  if (by.weights.defined()) {
    arguments.weights = by.weights.const_data_ptr<float>();
    arguments.order = by.unsorted.data();
    arguments.slots = by.unsorted.slots;
  }
  if (by.learns) {
    // Slots that no row has have no gradient.
    d_weights = by.unsorted.order.numel() < by.weights.numel() ? at::zeros_like(by.weights) : at::empty_like(by.weights);
    partial = at::empty({conv_gate_parts(arguments), h.size(0)}, by.weights.options());
    arguments.partial = partial.mutable_data_ptr<float>();
    arguments.d_weights = d_weights.mutable_data_ptr<float>();
  }
  C10_CUDA_CHECK(conv(arguments, stream()));
  return {d_h, a, d_weights};
}

/// The backward pass of operators::GroupedLinear: d_x, d_weight, d_bias, as they are needed; what is not is empty.
struct GroupedLinearBackward {
  static constexpr const char* name = "moecod::grouped_linear_backward";
  using signature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                       std::string_view, std::array<bool, 3>);
};

}  // namespace moecod::cuda
