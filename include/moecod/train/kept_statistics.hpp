#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>
#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <vector>

#include "moecod/layers/stack.hpp"

namespace moecod::train {

/// The running statistics of a model's normalising layers as they were before a step, to be put back if the step is
/// skipped: forward passes move them, and activations that are not finite would spoil them for good.
///
/// The model must be on its device before this is made, and outlive it. Synchronises: never.
class KeptStatistics {
 public:
  explicit KeptStatistics(const torch::nn::Module& model) {
    const auto take = [this](const torch::nn::Module& module) {
      if (dynamic_cast<const layers::BatchStatistics*>(&module) == nullptr) return;
      for (const at::Tensor& buffer : module.buffers(/*recurse=*/false)) kinds_[buffer.scalar_type()].live.push_back(buffer);
    };
    take(model);
    for (const auto& module : model.modules(/*include_self=*/false)) take(*module);
  }

  void keep() {
    const at::NoGradGuard no_grad;
    for (auto& [type, kind] : kinds_) kind.before = flat(kind.live);
  }

  /// Puts back what was kept where `skipped`, one number on the model's device, is not 0.
  void restore_where(const at::Tensor& skipped) {
    const at::NoGradGuard no_grad;
    for (auto& [type, kind] : kinds_) {
      const at::Tensor chosen = at::where(skipped.reshape({}).ne(0), kind.before, flat(kind.live));
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (const at::Tensor& buffer : kind.live) {
        parts.push_back(chosen.slice(0, begin, begin + buffer.numel()).view(buffer.sizes()));
        begin += buffer.numel();
      }
      at::_foreach_copy_(kind.live, parts);
    }
  }

 private:
  struct Kind {
    std::vector<at::Tensor> live;
    at::Tensor before;
  };

  /// All elements in one tensor, in a few launches.
  static at::Tensor flat(const std::vector<at::Tensor>& buffers) {
    std::vector<at::Tensor> lines;
    for (const at::Tensor& buffer : buffers) lines.push_back(buffer.reshape({-1}));
    return at::cat(lines);
  }

  std::map<at::ScalarType, Kind> kinds_;
};

}  // namespace moecod::train
