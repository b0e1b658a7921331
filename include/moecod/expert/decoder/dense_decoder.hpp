#pragma once
#include <ATen/ops/cat.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/decoder/channel_attention.hpp"
#include "moecod/expert/decoder/dilated_sum.hpp"
#include "moecod/expert/decoder/maps.hpp"
#include "moecod/expert/decoder/position_attention.hpp"

namespace moecod::expert::decoder {

/// Densely connected decoder of four levels, from the deepest to the finest.
///
///     x_i = dilated(3, 6, 12, 18)(P_i) to c channels;   x3, x4 <- position self-attention
///     y3  = dilated(RCAB[up x4, x3])                                   2c -> c
///     y2  = dilated(RCAB[up x4, up y3, x2])                            3c -> c
///     map = dilated(6, 12, 18, 24)(RCAB[up x4, up y3, up y2, x1])      4c -> 1
///
/// up goes to the size of the last in the brackets, corners aligned; y3 reaches the finest level through y2's size,
/// x4 through x3's.
/// Shapes: P_i [n, channels[i], H_i, W_i] -> [n, 1, H_1, W_1]. Synchronises: never.
/// Source: Li et al. 2021 (UJSC), arXiv 2104.02628.
class DenseDecoder : public torch::nn::Module {
 public:
  DenseDecoder(const std::vector<int64_t>& channels, int64_t width, double initial_logit) {
    const std::vector<int64_t> near{3, 6, 12, 18}, far{6, 12, 18, 24};
    for (std::size_t i = 0; i < channels.size(); ++i)
      reduce_.push_back(register_module("reduce" + std::to_string(i + 1),
                                        std::make_shared<DilatedSum>(channels[i], width, near)));
    attention3_ = register_module("attention3", std::make_shared<PositionAttention>(width));
    attention4_ = register_module("attention4", std::make_shared<PositionAttention>(width));
    mix3_ = register_module("mix3", std::make_shared<ChannelAttention>(2 * width));
    mix2_ = register_module("mix2", std::make_shared<ChannelAttention>(3 * width));
    mix1_ = register_module("mix1", std::make_shared<ChannelAttention>(4 * width));
    join3_ = register_module("join3", std::make_shared<DilatedSum>(2 * width, width, near));
    join2_ = register_module("join2", std::make_shared<DilatedSum>(3 * width, width, near));
    map_ = register_module("map", std::make_shared<DilatedSum>(4 * width, 1, far));
    map_->fill_total_bias(initial_logit);
  }

  at::Tensor forward(const Pyramid& levels) {
    const at::Tensor x1 = reduce_[0]->forward(levels[0]), x2 = reduce_[1]->forward(levels[1]);
    const at::Tensor x3 = attention3_->forward(reduce_[2]->forward(levels[2]));
    const at::Tensor x4 = up(attention4_->forward(reduce_[3]->forward(levels[3])), x3);
    const at::Tensor y3 = up(join3_->forward(mix3_->forward(at::cat({x4, x3}, 1))), x2);
    const at::Tensor y2 = up(join2_->forward(mix2_->forward(at::cat({up(x4, x2), y3, x2}, 1))), x1);
    return map_->forward(mix1_->forward(at::cat({up(x4, x1), up(y3, x1), y2, x1}, 1)));
  }

 private:
  std::vector<std::shared_ptr<DilatedSum>> reduce_;
  std::shared_ptr<PositionAttention> attention3_, attention4_;
  std::shared_ptr<ChannelAttention> mix3_, mix2_, mix1_;
  std::shared_ptr<DilatedSum> join3_, join2_, map_;
};

}  // namespace moecod::expert::decoder
