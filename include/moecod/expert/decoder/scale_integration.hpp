#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/softmax.h>
#include <torch/nn/module.h>

#include <numeric>
#include <vector>

#include "moecod/expert/decoder/maps.hpp"
#include "moecod/layers/pool.hpp"

namespace moecod::expert::decoder {

/// Multi-head scale integration: three views of one level merged by weights of their own for each head and position.
///
///     l = CBR3(maxpool(l') + avgpool(l')),  l' = CBR3(large);   m = CBR3(middle);   s = CBR3(up CBR3(small))
///     a = softmax over the three scales of conv1(CBR3(CBR1(CBR1([l, m, s]) of one head)))
///     y = sum over the scales of a * (CBR1([l, m, s]) of that scale and head)
///
/// Pooling and up go to the middle's size. `heads` is lowered to the largest common divisor with the width.
/// Shapes: large, middle, small [n, width, H_i, W_i] -> [n, width, H_middle, W_middle]. Synchronises: never.
/// Source: Pang et al. 2024 (ZoomNeXt), arXiv 2310.20208; ZoomNet, arXiv 2203.02688.
class ScaleIntegration : public torch::nn::Module {
 public:
  explicit ScaleIntegration(int64_t width, int64_t heads = 4) : heads_(std::gcd(width, heads)) {
    const auto add = [&](const char* name, int64_t in, int64_t out, int64_t kernel) {
      return register_module(name, conv_norm(in, out, kernel, After::relu));
    };
    before_large_ = add("before_large", width, width, 3);
    before_small_ = add("before_small", width, width, 3);
    large_ = add("large", width, width, 3);
    middle_ = add("middle", width, width, 3);
    small_ = add("small", width, width, 3);
    attention_ = add("attention", 3 * width, 3 * width, 1);
    value_ = add("value", 3 * width, 3 * width, 1);
    const int64_t each = width / heads_;
    head0_ = add("head0", 3 * each, each, 1);
    head1_ = add("head1", each, each, 3);
    score_ = register_module("score", conv(each, 3, 1));
  }

  at::Tensor forward(const at::Tensor& large, const at::Tensor& middle, const at::Tensor& small) {
    const int64_t n = middle.size(0), c = middle.size(1), h = middle.size(2), w = middle.size(3), d = c / heads_;
    const at::Tensor before = before_large_->forward(large);
    const at::Tensor l = large_->forward(layers::max_pool(before, h, w) + layers::average_pool(before, h, w));
    const at::Tensor m = middle_->forward(middle);
    const at::Tensor s = small_->forward(layers::resize(before_small_->forward(small), h, w));
    const at::Tensor all = at::cat({l, m, s}, 1);

    // Channels are (scale, head, d): heads move to the rows, and the channels stay last in memory.
    const at::Tensor attention = attention_->forward(all)
                                     .permute({0, 2, 3, 1})
                                     .reshape({n, h, w, 3, heads_, d})
                                     .permute({0, 4, 1, 2, 3, 5})
                                     .reshape({n * heads_, h, w, 3 * d})
                                     .permute({0, 3, 1, 2});
    const at::Tensor score = score_->forward(head1_->forward(head0_->forward(attention)));
    const std::vector<at::Tensor> values = value_->forward(all).chunk(3, 1);
    // Autocast makes softmax and sum float32; the large products stay in the features' type.
    const at::Tensor weights =
        at::softmax(score, 1).to(values[0].scalar_type()).reshape({n, heads_, 3, h, w});
    at::Tensor merged;
    for (int64_t i = 0; i < 3; ++i) {
      const at::Tensor part = values[std::size_t(i)].unflatten(1, {heads_, d}) * weights.select(2, i).unsqueeze(2);
      merged = i == 0 ? part : merged + part;
    }
    return merged.reshape({n, c, h, w});
  }

 private:
  int64_t heads_;
  ConvNorm before_large_, before_small_, large_, middle_, small_, attention_, value_, head0_, head1_;
  Conv2d score_;
};

}  // namespace moecod::expert::decoder
