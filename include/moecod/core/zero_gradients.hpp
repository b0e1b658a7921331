#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

namespace moecod {

namespace detail {
struct ZeroGradientsFunction : torch::autograd::Function<ZeroGradientsFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& out,
                                                at::TensorList parameters) {
    ctx->save_for_backward(parameters.vec());
    return {out.view_as(out)};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list out{grads[0]};
    for (const at::Tensor& parameter : ctx->get_saved_variables()) out.push_back(at::zeros_like(parameter));
    return out;
  }
};
}  // namespace detail

/// `out` itself, through a node whose backward gives zero gradients to `parameters`.
///
/// Parameters that took no part in a step then have zero gradients, not missing ones: every optimizer treats them the
/// same under every dispatcher, and a distributed reducer sees every parameter once.
inline at::Tensor with_zero_gradients(const at::Tensor& out, const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> trained;
  for (const at::Tensor& parameter : parameters)
    if (parameter.requires_grad()) trained.push_back(parameter);
  if (trained.empty() || !at::GradMode::is_enabled()) return out;
  return detail::ZeroGradientsFunction::apply(out, at::TensorList(trained)).front();
}

}  // namespace moecod
