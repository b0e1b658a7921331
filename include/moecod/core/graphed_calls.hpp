#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/module.h>

#include <any>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/device_graph.hpp"
#include "moecod/core/tree.hpp"

namespace moecod {

namespace detail {

/// One shape of call, recorded: tensors that stay where they are, and the work between them.
struct GraphedCall : torch::CustomClassHolder {
  std::vector<at::Tensor> inputs, outputs, output_gradients;
  std::vector<at::Tensor> gradients;  // of the inputs and the parameters; undefined where there is none
  std::vector<at::Tensor> roots;      // the outputs with their autograd graph, while it is being recorded
  std::unique_ptr<DeviceGraph> forward, backward;
  std::any shape;  // the output as a tree, its leaves to be filled in

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& from) const {
    for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i].detach().copy_(from[i], /*non_blocking=*/true);
    forward->replay();
    std::vector<at::Tensor> out;
    for (const at::Tensor& output : outputs) out.push_back(output.clone());
    return out;
  }
};

/// Lives as long as a forward pass whose activations may still be wanted.
struct InUse : torch::CustomClassHolder {};

struct GraphedFunction : torch::autograd::Function<GraphedFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const c10::intrusive_ptr<GraphedCall>& call,
                                                const c10::intrusive_ptr<InUse>& in_use, at::TensorList inputs,
                                                at::TensorList /*parameters*/) {
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->saved_data["fresh"] = true;
    ctx->saved_data["in_use"] = c10::IValue::make_capsule(in_use);
    ctx->set_materialize_grads(false);
    torch::autograd::variable_list out = call->run(inputs.vec()), constants;
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!call->output_gradients[i].defined()) constants.push_back(out[i]);
    ctx->mark_non_differentiable(constants);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    TORCH_CHECK(ctx->saved_data.erase("fresh") == 1, "a graphed call can be gone backward through once only");
    const auto call = c10::static_intrusive_pointer_cast<GraphedCall>(ctx->saved_data["call"].toCapsule());
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!call->output_gradients[i].defined()) continue;
      if (gradients[i].defined()) {
        call->output_gradients[i].copy_(gradients[i], /*non_blocking=*/true);
      } else {
        call->output_gradients[i].zero_();
      }
    }
    call->backward->replay();
    torch::autograd::variable_list out(2);  // the call, its use
    out.insert(out.end(), call->gradients.begin(), call->gradients.end());
    return out;
  }
};

}  // namespace detail

/// Calls of one function of a module, which become replays of device graphs: the host then spends a few launches on a
/// forward or backward pass instead of thousands.
///
/// The first call with inputs of a shape is a plain call, the second is recorded, forward and backward, and replayed, as
/// are all that follow. Recordings are kept by everything that a call depends on: shapes, dtypes, what requires
/// gradients, modes of the module, autocast. Those whose inputs differ in the leading dimension alone share the memory of
/// their activations (each has its own for outputs and gradients), so a call made while those of another may still be wanted
/// is a plain one, too. Results are those of a plain call, bit for bit where its operations repeat. Outputs are the caller's to
/// keep; gradients as torch::autograd::grad gives them are good until the next replay, while backward() adds them up at once.
///
/// The function must not read the device's results back nor copy from pageable memory, must take its tensors from the
/// input and the module, and must not depend on other values of the host. Recordings hold the places of the module's
/// parameters and buffers: change them in place only. Synchronises: where the function does, in its first two calls.
/// Errors: those of the function; c10::Error, with advice, where it cannot be recorded, and in a second backward pass.
class GraphedCalls {
 public:
  /// Calls are plain ones without a recorder.
  std::shared_ptr<GraphRecorder> recorder;

  /// fn(input), for an fn of a tree of tensors that gives one.
  template <class Fn, tree::any Input>
  auto operator()(const torch::nn::Module& module, Fn fn, const Input& input) {
    using Output = std::decay_t<std::invoke_result_t<Fn&, const Input&>>;
    static_assert(tree::any<Output>, "GraphedCalls: fn must return a tree of tensors (moecod/core/tree.hpp)");
    if (!recorder || !recorder->ready()) return Output(fn(input));
    const std::vector<at::Tensor> inputs = tree::leaves(input);
    if (inputs.empty() || inputs.front().numel() == 0) return Output(fn(input));

    Key key = key_of(inputs);
    std::vector<at::Tensor> parameters;
    bool differentiable = false;
    describe(module, key.rest, parameters);
    for (const auto* tensors : {&inputs, &std::as_const(parameters)})
      for (const at::Tensor& tensor : *tensors) differentiable |= tensor.requires_grad();
    differentiable &= at::GradMode::is_enabled();
    Memory& memory = memories_[key.maps];
    const bool known = memory.calls.contains(key.rest);
    c10::intrusive_ptr<detail::GraphedCall>& call = memory.calls[key.rest];
    if (!known || !memory.in_use.expired()) return Output(fn(input));
    if (!call) {
      if (!memory.pool) memory.pool = recorder->new_pool();
      call = record<Output>(*memory.pool, fn, input, inputs, parameters, differentiable);
    }
    std::vector<at::Tensor> out;
    if (differentiable) {
      const auto in_use = c10::make_intrusive<detail::InUse>();
      memory.in_use = c10::weak_intrusive_ptr<detail::InUse>(in_use);
      out = detail::GraphedFunction::apply(call, in_use, at::TensorList(inputs), at::TensorList(parameters));
    } else {
      out = call->run(inputs);
    }
    return tree::with_leaves(std::any_cast<const Output&>(call->shape), out);
  }

 private:
  struct Key {
    std::string maps, rest;  // sizes without the leading ones; everything else
  };
  struct Memory {
    std::optional<GraphRecorder::Pool> pool;
    std::map<std::string, c10::intrusive_ptr<detail::GraphedCall>> calls;  // null: called once so far
    c10::weak_intrusive_ptr<detail::InUse> in_use{c10::intrusive_ptr<detail::InUse>()};
  };

  static void write(std::string& to, int64_t value) { to.append(reinterpret_cast<const char*>(&value), sizeof value); }

  static Key key_of(const std::vector<at::Tensor>& inputs) {
    Key key;
    for (const at::Tensor& input : inputs) {
      write(key.maps, input.dim());
      for (int64_t d = 1; d < input.dim(); ++d) write(key.maps, input.size(d));
      write(key.rest, input.dim() > 0 ? input.size(0) : 0);
      for (const int64_t stride : input.strides()) write(key.rest, stride);
      write(key.rest, static_cast<int64_t>(input.scalar_type()) * 2 + (input.requires_grad() ? 1 : 0));
    }
    const AutocastState autocast = AutocastState::current(inputs.front().device().type());
    write(key.rest, (at::GradMode::is_enabled() ? 2 : 0) + (autocast.enabled ? 1 : 0));
    write(key.rest, static_cast<int64_t>(autocast.dtype));
    return key;
  }

  /// Adds the modes of a module and its children, and what is trained of them.
  static void describe(const torch::nn::Module& module, std::string& key, std::vector<at::Tensor>& parameters) {
    key.push_back(module.is_training() ? 't' : 'e');
    for (const at::Tensor& parameter : module.parameters(/*recurse=*/false)) {
      key.push_back(parameter.requires_grad() ? '1' : '0');
      parameters.push_back(parameter);
    }
    for (const auto& child : module.children()) describe(*child, key, parameters);
  }

  template <class Output, class Fn, class Input>
  c10::intrusive_ptr<detail::GraphedCall> record(GraphRecorder::Pool pool, const Fn& fn, const Input& input,
                                                 const std::vector<at::Tensor>& inputs,
                                                 const std::vector<at::Tensor>& parameters, bool differentiable) {
    auto made = c10::make_intrusive<detail::GraphedCall>();
    detail::GraphedCall* call = made.get();  // the work of a recorder may live as long as its graph
    for (const at::Tensor& leaf : inputs)
      call->inputs.push_back(leaf.detach().clone().set_requires_grad(differentiable && leaf.requires_grad()));
    const c10::DeviceType device = inputs.front().device().type();
    try {
      call->forward = recorder->record(pool, [call, fn, input, device, differentiable]() mutable {
        const at::AutoGradMode record_grad(differentiable);
        Output out = uncached(device, [&] { return fn(tree::with_leaves(input, call->inputs)); });
        call->roots = tree::leaves(out);
        call->outputs.clear();
        for (const at::Tensor& root : call->roots) call->outputs.push_back(root.detach());
        call->shape = tree::map([](const at::Tensor& leaf) { return leaf.detach(); }, out);
      });
      call->output_gradients.resize(call->roots.size());
      call->gradients.resize(inputs.size() + parameters.size());
      if (differentiable) {
        for (std::size_t i = 0; i < call->roots.size(); ++i)
          if (call->roots[i].requires_grad()) call->output_gradients[i] = at::empty_like(call->outputs[i]);
        call->backward = recorder->record(pool, [call, parameters] {
          torch::autograd::variable_list roots, seeds, wanted = call->inputs;
          wanted.insert(wanted.end(), parameters.begin(), parameters.end());
          std::erase_if(wanted, [](const at::Tensor& tensor) { return !tensor.requires_grad(); });
          for (std::size_t i = 0; i < call->roots.size(); ++i) {
            if (!call->output_gradients[i].defined()) continue;
            roots.push_back(call->roots[i]);
            seeds.push_back(call->output_gradients[i]);
          }
          const auto found = torch::autograd::grad(roots, wanted, seeds, /*retain_graph=*/false,
                                                   /*create_graph=*/false, /*allow_unused=*/true);
          std::size_t next = 0;
          for (std::size_t i = 0; i < call->gradients.size(); ++i) {
            const bool is_input = i < call->inputs.size();
            const at::Tensor& of = is_input ? call->inputs[i] : parameters[i - call->inputs.size()];
            call->gradients[i] = of.requires_grad() ? found[next++] : at::Tensor();
          }
        });
      }
    } catch (const c10::Error& error) {
      TORCH_CHECK(false, "a device graph could not be recorded: ", error.what_without_backtrace(),
                  " (code that reads results back from the device cannot be; the trainers' --no-cuda-graphs makes plain calls)");
    }
    call->roots.clear();
    return made;
  }

  /// Casts of parameters made outside a recording must not be used within, nor the other way round.
  template <class Work>
  static auto uncached(c10::DeviceType device, const Work& work) {
    if (AutocastState::current(device).enabled) at::autocast::clear_cache();
    auto out = work();
    if (AutocastState::current(device).enabled) at::autocast::clear_cache();
    return out;
  }

  std::map<std::string, Memory> memories_;
};

/// A module that can run its calls from device graphs: turned on by replay_graphs.
struct Graphed {
  virtual ~Graphed() = default;
  /// Gives the recorder to the module's GraphedCalls.
  virtual void record_with(const std::shared_ptr<GraphRecorder>& recorder) = 0;
};

/// Makes the backbone, the router and the experts of a model replay their passes as device graphs (GraphedCalls). To be
/// called when the model is on its device; for one thread at a time. A null recorder makes all calls plain ones again.
/// Experts that wait for other ranks (sync_bn) cannot be recorded.
inline void replay_graphs(torch::nn::Module& model, const std::shared_ptr<GraphRecorder>& recorder) {
  if (auto* graphed = dynamic_cast<Graphed*>(&model)) graphed->record_with(recorder);
  for (const auto& child : model.children()) replay_graphs(*child, recorder);
}

}  // namespace moecod
