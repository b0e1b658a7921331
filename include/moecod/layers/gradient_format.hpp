#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

namespace moecod::layers {

namespace detail {

struct OwnFormatFunction : torch::autograd::Function<OwnFormatFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x) {
    ctx->saved_data["format"] = static_cast<int64_t>(x.suggest_memory_format());
    return x.view_as(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {grads[0].contiguous(static_cast<at::MemoryFormat>(ctx->saved_data["format"].toInt()))};
  }
};

}  // namespace detail

/// x, whose gradient arrives in x's memory format. For a part of a map of which only a mean is used: the mean's gradient is
/// one number a map without a format, for which the gradient of the whole would be put together channels first, and copied
/// by all that follow. Shapes: any -> the same. Synchronises: never.
inline at::Tensor gradient_in_own_format(const at::Tensor& x) { return detail::OwnFormatFunction::apply(x); }

}  // namespace moecod::layers
