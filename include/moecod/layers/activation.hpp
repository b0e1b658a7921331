#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>

#include <string_view>

namespace moecod::layers {

/// What a linear layer may do to its input first.
///
///     gelu    a = h Phi(h)                        (exact)
///     swiglu  a = silu(g) u, [g, u] = h           (Shazeer 2020, arXiv 2002.05202); halves the width
enum class Activation { none, gelu, swiglu };

inline const char* name_of(Activation activation) {
  return activation == Activation::none ? "none" : activation == Activation::gelu ? "gelu" : "swiglu";
}

/// Errors: c10::Error on another name.
inline Activation activation_named(std::string_view name) {
  for (Activation activation : {Activation::none, Activation::gelu, Activation::swiglu})
    if (name == name_of(activation)) return activation;
  TORCH_CHECK(false, "activation must be none, gelu or swiglu, got ", name);
}

/// Over the last dimension. Synchronises: never.
inline at::Tensor activate(const at::Tensor& h, Activation activation) {
  switch (activation) {
    case Activation::none: break;
    case Activation::gelu: return at::gelu(h);
    case Activation::swiglu: {
      const auto parts = h.chunk(2, -1);
      return at::silu(parts[0]) * parts[1];
    }
  }
  return h;
}

}  // namespace moecod::layers
