#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/random_state.hpp"
#include "moecod/core/recomputing.hpp"
#include "moecod/core/tree.hpp"

namespace moecod {

namespace detail {

/// The surroundings in which a piece of the model ran, to run it once more in the same.
struct RecomputePlan : torch::CustomClassHolder {
  std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)> run;
  std::size_t inputs = 0;
  AutocastState autocast;
  RandomState random;
};

class RecomputingGuard {
 public:
  RecomputingGuard() : outer_(std::exchange(recomputing(), true)) {}
  RecomputingGuard(const RecomputingGuard&) = delete;
  RecomputingGuard& operator=(const RecomputingGuard&) = delete;
  ~RecomputingGuard() { recomputing() = outer_; }

 private:
  bool outer_;
};

struct RecomputeFunction : torch::autograd::Function<RecomputeFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const c10::intrusive_ptr<RecomputePlan>& plan,
                                                at::TensorList inputs, at::TensorList parameters) {
    torch::autograd::variable_list saved = inputs.vec();
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    ctx->set_materialize_grads(false);
    // Some LibTorch releases keep a cast that is made here, where no graph is recorded, for layers that record one.
    AutocastState uncached = plan->autocast;
    uncached.cache = false;
    const AutocastGuard autocast(uncached);
    return plan->run(inputs.vec());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const auto plan = c10::static_intrusive_pointer_cast<RecomputePlan>(ctx->saved_data["plan"].toCapsule());
    torch::autograd::variable_list saved = ctx->get_saved_variables();
    for (std::size_t i = 0; i < plan->inputs; ++i)
      saved[i] = saved[i].detach().set_requires_grad(saved[i].requires_grad());

    const torch::autograd::variable_list outputs = repeat(*plan, {saved.begin(), saved.begin() + plan->inputs});
    torch::autograd::variable_list roots, root_gradients, wanted;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_gradients.push_back(gradients[i]);
    }
    for (const at::Tensor& tensor : saved)
      if (tensor.requires_grad()) wanted.push_back(tensor);

    torch::autograd::variable_list out(1 + saved.size());  // the plan, inputs, parameters
    if (roots.empty() || wanted.empty()) return out;
    const auto found = torch::autograd::grad(roots, wanted, root_gradients, /*retain_graph=*/false,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    for (std::size_t i = 0, next = 0; i < saved.size(); ++i)
      if (saved[i].requires_grad()) out[1 + i] = found[next++];
    return out;
  }

 private:
  static torch::autograd::variable_list repeat(const RecomputePlan& plan,
                                               const torch::autograd::variable_list& inputs) {
    const at::AutoGradMode record(true);
    const RecomputingGuard repeated;
    const RandomStateGuard random(plan.random);
    AutocastState uncached = plan.autocast;
    uncached.cache = false;
    const AutocastGuard autocast(uncached);
    return plan.run(inputs);
  }
};

}  // namespace detail

/// fn(input), with the activations inside fn thrown away and computed once more when gradients are wanted
/// (Chen et al. 2016, arXiv 1604.06174).
///
/// `fn` maps a tree of tensors (core/tree.hpp) to a tree, and is kept until the backward pass. `parameters` are all
/// the trainable tensors that it uses besides its input: they are inputs of the autograd node, so the engine's hooks
/// and a distributed reducer see them, and one that is left out gets no gradient. Inputs may or may not require
/// gradients. Without gradients this is a plain call.
///
/// The second pass sees the random numbers and the autocast settings of the first, and leaves running statistics
/// alone (core/recomputing.hpp): outputs, gradients and buffers are those of a plain call, bit for bit where fn's own
/// operations repeat. fn must not change its input, and must move no other state unless recomputing() is false.
///
/// Synchronises: never. Errors: those of fn; c10::Error in the backward pass if an input or a parameter was changed
/// in place since the forward pass, and on second derivatives.
template <class Fn, tree::any Input>
auto recompute(Fn fn, const Input& input, const std::vector<at::Tensor>& parameters) {
  using Output = std::decay_t<std::invoke_result_t<Fn&, const Input&>>;
  static_assert(tree::any<Output>, "recompute: fn must return a tree of tensors (moecod/core/tree.hpp)");
  if (!at::GradMode::is_enabled()) return Output(fn(input));

  const std::vector<at::Tensor> inputs = tree::leaves(input);
  at::Device device = at::kCPU;
  for (const at::Tensor& leaf : inputs)
    if (leaf.is_cuda()) device = leaf.device();

  const auto first = std::make_shared<std::optional<Output>>();  // the shape of the output; gone after the first pass
  const auto plan = c10::make_intrusive<detail::RecomputePlan>();
  plan->inputs = inputs.size();
  plan->autocast = AutocastState::current(device.type());
  plan->random = RandomState::capture(device);
  // The node holds the shape of the input only: the tensors themselves are saved variables, freed after use.
  const Input shape = tree::map([](const at::Tensor&) { return at::empty({0}); }, input);
  plan->run = [fn, shape, slot = std::weak_ptr(first)](const std::vector<at::Tensor>& leaves) mutable {
    Output out = fn(tree::with_leaves(shape, leaves));
    std::vector<at::Tensor> out_leaves = tree::leaves(out);
    if (const auto output = slot.lock()) *output = std::move(out);
    return out_leaves;
  };
  const auto leaves = detail::RecomputeFunction::apply(plan, at::TensorList(inputs), at::TensorList(parameters));
  return tree::with_leaves(first->value(), leaves);
}

}  // namespace moecod
