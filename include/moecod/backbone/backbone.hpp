#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "moecod/core/graphed_calls.hpp"
#include "moecod/core/pyramid.hpp"
#include "moecod/core/recompute.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::backbone {

/// Settings of the backbones here.
struct Options {
  /// Drop-path rate of the last block, in [0, 1); earlier blocks get linearly less, the first none.
  double drop_path = 0.0;
};

/// x through blocks, one after the other, each also given `more`; with `recompute` their activations are computed anew in
/// the backward pass.
template <class Block, class... More>
at::Tensor run_blocks(const std::vector<std::shared_ptr<Block>>& blocks, at::Tensor x, bool recompute, More... more) {
  for (const auto& block : blocks) {
    const auto run = [block, more...](const at::Tensor& t) { return block->forward(t, more...); };
    x = recompute ? moecod::recompute(run, x, block->parameters()) : run(x);
  }
  return x;
}

/// A network that makes a pyramid of feature maps from images; every backbone derives from it.
///
/// Shapes: images [B, 3, H, W], normalised -> level i [B, dims[i], H / strides[i], W / strides[i]], finest first.
/// A derived type nests `struct Options` and is constructible from it (backbone::policy in concept.hpp).
class Backbone : public torch::nn::Module, public Graphed {
 public:
  using policy_kind = kind::backbone;

  /// Channels of each level.
  virtual std::vector<int64_t> dims() const = 0;
  /// Pixels of the image to one position of each level.
  virtual std::vector<int64_t> strides() const = 0;
  virtual Pyramid forward(const at::Tensor& images) = 0;
  /// forward, replayed from device graphs where replay_graphs has turned that on and nothing is computed anew:
  /// what models call.
  Pyramid operator()(const at::Tensor& images) {
    if (recompute) return forward(images);
    return calls_(*this, [this](const at::Tensor& x) { return forward(x); }, images);
  }
  void record_with(const std::shared_ptr<GraphRecorder>& recorder) override { calls_.recorder = recorder; }

  /// Compute the activations of blocks anew in the backward pass instead of keeping them, where the network can.
  bool recompute = false;

 protected:
  /// Errors: c10::Error naming the sizes when the images are not [B, 3, H, W] with H and W multiples of the last
  /// stride.
  void check_images(const at::Tensor& images) const {
    TORCH_CHECK(images.dim() == 4 && images.size(1) == 3, "backbone: expected images [B, 3, H, W], got ",
                images.sizes());
    const int64_t step = strides().back();
    TORCH_CHECK(images.size(2) > 0 && images.size(3) > 0 && images.size(2) % step == 0 && images.size(3) % step == 0,
                "backbone: height and width must be multiples of ", step, ", got ", images.size(2), " x ",
                images.size(3));
  }

 private:
  GraphedCalls calls_;
};

}  // namespace moecod::backbone
