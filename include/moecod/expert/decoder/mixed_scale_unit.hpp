#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <string>
#include <vector>

#include "moecod/expert/decoder/maps.hpp"
#include "moecod/layers/gradient_format.hpp"

namespace moecod::expert::decoder {

/// Hierarchical mixed-scale unit: G groups of channels, each convolved with what its predecessor hands on, so that
/// the receptive field grows from group to group; a gate weighs the results.
///
///     [x_1 ... x_G] = CBR1(x), h channels each
///     [out_g, fork_g, gate_g] = CBR3([x_g, fork_(g-1)])       the first has no predecessor, the last no fork
///     gate = softmax over channels of W2 relu(W1 mean[gate_1 ... gate_G])
///     y = relu(x + CB3([out_1 ... out_G] * gate))
///
/// h is half of the width. Shapes: x [n, width, H, W] -> the same. Synchronises: never.
/// Source: Pang et al. 2022 (ZoomNet), arXiv 2203.02688.
class MixedScaleUnit : public torch::nn::Module {
 public:
  explicit MixedScaleUnit(int64_t width, int64_t groups = 6) : groups_(groups) {
    TORCH_CHECK(groups >= 2, "MixedScaleUnit: groups must be at least 2, got ", groups);
    const int64_t h = std::max<int64_t>(1, width / 2);
    expand_ = register_module("expand", conv_norm(width, groups * h, 1, After::relu));
    for (int64_t g = 0; g < groups; ++g)
      interact_.push_back(register_module("interact" + std::to_string(g),
                                          conv_norm(g == 0 ? h : 2 * h, (g + 1 < groups ? 3 : 2) * h, 3, After::relu)));
    gate0_ = register_module("gate0", conv(groups * h, h, 1));
    gate1_ = register_module("gate1", conv(h, groups * h, 1));
    fuse_ = register_module("fuse", conv_norm(groups * h, width, 3, After::nothing));
  }

  at::Tensor forward(const at::Tensor& x) {
    const std::vector<at::Tensor> parts = expand_->forward(x).chunk(groups_, 1);
    std::vector<at::Tensor> outs, gates;
    at::Tensor fork;
    for (int64_t g = 0; g < groups_; ++g) {
      const bool last = g + 1 == groups_;
      const at::Tensor in = fork.defined() ? at::cat({parts[g], fork}, 1) : parts[g];
      const std::vector<at::Tensor> split = interact_[g]->forward(in).chunk(last ? 2 : 3, 1);
      outs.push_back(split.front());
      gates.push_back(layers::gradient_in_own_format(split.back()).mean({2, 3}, /*keepdim=*/true));
      if (!last) fork = split[1];
    }
    const at::Tensor gate = at::softmax(gate1_->forward(at::relu(gate0_->forward(at::cat(gates, 1)))), 1);
    const at::Tensor out = at::cat(outs, 1);
    // Autocast makes softmax float32; the large product stays in the features' type.
    return at::relu(x + fuse_->forward(out * gate.to(out.scalar_type())));
  }

 private:
  int64_t groups_;
  ConvNorm expand_, fuse_;
  std::vector<ConvNorm> interact_;
  Conv2d gate0_, gate1_;
};

}  // namespace moecod::expert::decoder
