#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string_view>

namespace moecod {

/// Counts the multiply-adds of the operations that this thread runs while the counter lives.
///
///     convolution            output values * (input channels / groups) * kernel area
///     transposed convolution input values * (output channels / groups) * kernel area
///     linear, matmul, mm, bmm, mv, dot, addmm, addmv, baddbmm   output values * length of the sum
///     scaled_dot_product_attention   query rows * key rows * (query width + value width), for each batch and head
/// Biases, norms, activations, pooling, resampling and Fourier transforms are not counted, as is usual. An operation
/// inside a counted one is not counted again. Meant for forward passes without gradients: of a backward pass only its
/// matrix products would be seen. Counters may nest: the outer one takes over the inner one's total when that ends.
/// Synchronises: never. Cost: a callback on each operation while a counter lives, none otherwise.
class MacCounter {
 public:
  MacCounter() : outer_(active()) {
    active() = this;
    if (outer_ != nullptr) return;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&MacCounter::enter, &MacCounter::leave)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
  }
  ~MacCounter() {
    active() = outer_;
    if (outer_ != nullptr) {
      outer_->total_ += total_;
    } else {
      at::removeCallback(handle_);
    }
  }
  MacCounter(const MacCounter&) = delete;
  MacCounter& operator=(const MacCounter&) = delete;

  /// Multiply-adds so far.
  int64_t total() const { return total_; }

 private:
  /// What an operation costs: `fixed`, known from its inputs, and `per_output` for each value of its output.
  struct Cost : at::ObserverContext {
    int64_t fixed = 0, per_output = 0;
  };

  static MacCounter*& active() {
    thread_local MacCounter* counter = nullptr;
    return counter;
  }

  static std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& call) {
    MacCounter& counter = *active();
    if (counter.inside_) return nullptr;
    auto cost = cost_of(call.name(), call.inputs());
    counter.inside_ = cost != nullptr;
    return cost;
  }

  static void leave(const at::RecordFunction& call, at::ObserverContext* context) {
    const auto* cost = static_cast<const Cost*>(context);
    if (cost == nullptr) return;
    MacCounter& counter = *active();
    counter.inside_ = false;
    counter.total_ += cost->fixed;
    if (!call.outputs().empty() && call.outputs()[0].isTensor())
      counter.total_ += cost->per_output * call.outputs()[0].toTensor().numel();
  }

  static std::unique_ptr<Cost> cost_of(std::string_view name, c10::ArrayRef<const c10::IValue> inputs) {
    const auto is_one_of = [&](std::initializer_list<std::string_view> names) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    const auto tensor = [&](std::size_t i) -> const at::Tensor& { return inputs[i].toTensor(); };
    auto cost = std::make_unique<Cost>();
    if (is_one_of({"aten::conv1d", "aten::conv2d", "aten::conv3d"})) {
      cost->per_output = tensor(1).numel() / tensor(1).size(0);
    } else if (is_one_of({"aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d"})) {
      cost->fixed = tensor(0).numel() * (tensor(1).numel() / tensor(1).size(0));
    } else if (is_one_of({"aten::convolution", "aten::_convolution"})) {
      const bool transposed = inputs[6].toBool();
      const int64_t each = tensor(1).numel() / tensor(1).size(0);
      (transposed ? cost->fixed : cost->per_output) = transposed ? tensor(0).numel() * each : each;
    } else if (is_one_of({"aten::linear", "aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot"})) {
      cost->per_output = tensor(0).dim() > 0 ? tensor(0).size(-1) : 0;
    } else if (is_one_of({"aten::addmm", "aten::addmv", "aten::baddbmm"})) {
      cost->per_output = tensor(1).size(-1);
    } else if (name == "aten::scaled_dot_product_attention") {
      const at::Tensor &q = tensor(0), &k = tensor(1), &v = tensor(2);
      cost->fixed = q.numel() / q.size(-1) * k.size(-2) * (q.size(-1) + v.size(-1));
    } else {
      return nullptr;
    }
    return cost;
  }

  MacCounter* outer_;
  at::CallbackHandle handle_{};
  int64_t total_ = 0;
  bool inside_ = false;
};

}  // namespace moecod
