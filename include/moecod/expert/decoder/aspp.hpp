#pragma once
#include <ATen/ops/cat.h>
#include <torch/nn/module.h>

#include "moecod/expert/decoder/maps.hpp"

namespace moecod::expert::decoder {

/// Atrous spatial pyramid pooling, the lean form: a chain of three dilated convolutions beside the global mean.
///
///     [a, b] = CBR1(x);   d1 = CBR3 dilated (a), d2 = CBR3 dilated (d1), d3 = CBR3 dilated (d2);   g = CBR1(mean b)
///     y = CBR3(CBR1([g, a, d1, d2, d3]))
///
/// All dilations are 3. Shapes: x [n, in, H, W] -> [n, width, H, W]. Synchronises: never.
/// Source: Chen et al. 2017, arXiv 1706.05587; Pang et al. 2024 (ZoomNeXt), arXiv 2310.20208.
class Aspp : public torch::nn::Module {
 public:
  Aspp(int64_t in, int64_t width) {
    const auto add = [&](const char* name, int64_t from, int64_t to, int64_t kernel, int64_t dilation = 1) {
      return register_module(name, conv_norm(from, to, kernel, After::relu, dilation));
    };
    reduce_ = add("reduce", in, 2 * width, 1);
    global_ = add("global", width, width, 1);
    dilated1_ = add("dilated1", width, width, 3, 3);
    dilated2_ = add("dilated2", width, width, 3, 3);
    dilated3_ = add("dilated3", width, width, 3, 3);
    join_ = add("join", 5 * width, width, 1);
    last_ = add("last", width, width, 3);
  }

  at::Tensor forward(const at::Tensor& x) {
    const std::vector<at::Tensor> halves = reduce_->forward(x).chunk(2, 1);
    const at::Tensor a = halves[0];
    const at::Tensor d1 = dilated1_->forward(a), d2 = dilated2_->forward(d1), d3 = dilated3_->forward(d2);
    const at::Tensor global = global_->forward(halves[1].mean({2, 3}, /*keepdim=*/true)).expand_as(a);
    return last_->forward(join_->forward(at::cat({global, a, d1, d2, d3}, 1)));
  }

 private:
  ConvNorm reduce_, global_, dilated1_, dilated2_, dilated3_, join_, last_;
};

}  // namespace moecod::expert::decoder
