#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <torch/csrc/autograd/custom_function.h>

namespace moecod::layers {

/// x in a memory format, also where it has one pixel only, whose strides would say either.
inline at::Tensor in_format(const at::Tensor& x, at::MemoryFormat format) {
  const at::Tensor y = x.contiguous(format);
  return format == at::MemoryFormat::ChannelsLast ? y.as_strided(y.sizes(), c10::get_channels_last_strides_2d(y.sizes()))
                                                  : y;
}

namespace detail {

struct OwnFormatFunction : torch::autograd::Function<OwnFormatFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x) {
    ctx->saved_data["format"] = static_cast<int64_t>(x.suggest_memory_format());
    return x.view_as(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {in_format(grads[0], static_cast<at::MemoryFormat>(ctx->saved_data["format"].toInt()))};
  }
};

}  // namespace detail

/// x, whose gradient arrives in x's memory format. For a part of a map of which only a mean is used: the mean's gradient is
/// one number a map without a format, for which the gradient of the whole would be put together channels first, and copied
/// by all that follow. Shapes: any -> the same. Synchronises: never.
inline at::Tensor gradient_in_own_format(const at::Tensor& x) { return detail::OwnFormatFunction::apply(x); }

}  // namespace moecod::layers
