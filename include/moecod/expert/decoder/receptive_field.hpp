#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/relu.h>
#include <torch/nn/module.h>

#include <array>
#include <string>
#include <vector>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Receptive field block (texture-enhanced module): four branches of growing reach, joined, with a shortcut.
///
///     b0 = CB1(x);   bk = CB3 dilated by k (CB kx1 (CB 1xk (CB1(x)))),  k = 3, 5, 7
///     y  = relu(CB3([b0, b3, b5, b7]) + CB1(x))
///
/// CB is convolution and normalisation; the last ReLU is the only one.
/// Shapes: x [n, in, H, W] -> [n, width, H, W]. Synchronises: never.
/// Source: Liu et al. 2018 (RFB), arXiv 1711.07767; Fan et al. 2021 (SINet-V2), arXiv 2102.10274.
class ReceptiveField : public torch::nn::Module {
 public:
  ReceptiveField(int64_t in, int64_t width) {
    const auto add = [&](const std::string& name, ConvNorm layer) { return register_module(name, std::move(layer)); };
    branches_.push_back({add("branch0_0", conv_norm(in, width, 1, After::nothing))});
    for (const int64_t k : {3, 5, 7}) {
      const std::string name = "branch" + std::to_string(branches_.size()) + "_";
      const auto line = [&](std::array<int64_t, 2> kernel) {
        return std::make_shared<layers::ConvNorm<>>(
            layers::Conv2dOptions{.in = width, .out = width, .kernel = kernel}, After::nothing);
      };
      branches_.push_back({add(name + "0", conv_norm(in, width, 1, After::nothing)), add(name + "1", line({1, k})),
                           add(name + "2", line({k, 1})),
                           add(name + "3", conv_norm(width, width, 3, After::nothing, /*dilation=*/k))});
    }
    join_ = add("join", conv_norm(4 * width, width, 3, After::nothing));
    shortcut_ = add("shortcut", conv_norm(in, width, 1, After::nothing));
  }

  at::Tensor forward(const at::Tensor& x) {
    std::vector<at::Tensor> reached;
    for (const auto& branch : branches_) {
      at::Tensor y = x;
      for (const ConvNorm& layer : branch) y = layer->forward(y);
      reached.push_back(y);
    }
    return at::relu(join_->forward(at::cat(reached, 1)) + shortcut_->forward(x));
  }

 private:
  std::vector<std::vector<ConvNorm>> branches_;
  ConvNorm join_, shortcut_;
};

}  // namespace moecod::expert::decoder
