#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/sigmoid.h>

#include <memory>
#include <tuple>
#include <vector>

#include "moecod/core/pyramid.hpp"
#include "moecod/layers/conv_norm.hpp"
#include "moecod/layers/resize.hpp"
#include "moecod/loss/inputs.hpp"

/// The pieces of the four decoders (expert/sinet.hpp, pranet.hpp, zoomnet.hpp, ujsc.hpp) and what they share.
namespace moecod::expert::decoder {

/// What a decoder returns: the final map, and the maps on the way to it, coarse or early ones first.
///
/// `logits` [n, 1, H, W] at the image's size, float32 (float64 in a float64 model); `side[i]` [n, 1, H_i, W_i].
struct Maps {
  at::Tensor logits;
  std::vector<at::Tensor> side;

  at::Tensor& primary() { return logits; }
  static constexpr auto members = std::make_tuple(&Maps::logits, &Maps::side);
};

using layers::After;
using ConvNorm = std::shared_ptr<layers::ConvNorm<>>;
using Conv2d = std::shared_ptr<layers::Conv2d<>>;

/// A square convolution with normalisation that keeps the size.
inline ConvNorm conv_norm(int64_t in, int64_t out, int64_t kernel, After after, int64_t dilation = 1) {
  return std::make_shared<layers::ConvNorm<>>(layers::Conv2dOptions::square(in, out, kernel, dilation), after);
}

/// A square convolution with bias that keeps the size.
inline Conv2d conv(int64_t in, int64_t out, int64_t kernel, int64_t dilation = 1) {
  return std::make_shared<layers::Conv2d<>>(layers::Conv2dOptions::square(in, out, kernel, dilation));
}

inline void fill_bias(const Conv2d& layer, double value) {
  torch::NoGradGuard no_grad;
  layer->bias.fill_(value);
}

/// x resized to the size of `like` with its corner samples aligned.
inline at::Tensor up(const at::Tensor& x, const at::Tensor& like) {
  return layers::resize_like(x, like, /*align_corners=*/true);
}

/// 1 - sigmoid(map): where the object is not.
inline at::Tensor reverse(const at::Tensor& map) { return at::sigmoid(-map); }

/// A map of logits at the image's size and in full precision, whatever precision the decoder ran in.
inline at::Tensor at_image_size(const at::Tensor& map, int64_t height, int64_t width) {
  return layers::resize(loss::full_precision(map), height, width);
}

/// The levels of a pyramid from `first` on; those below are left undefined, so that nobody gathers them, and every
/// level keeps its index.
inline Levels levels_from(const Scene& scene, std::size_t first) {
  Levels levels = Levels::of(scene);
  for (std::size_t i = 0; i < first && i < levels.pyramid.size(); ++i) levels.pyramid[i] = at::Tensor();
  return levels;
}

/// Errors: c10::Error unless the pyramid has one level per entry of `channels`, of those channels, from `first` on.
inline void check_pyramid(const char* who, const Pyramid& pyramid, const std::vector<int64_t>& channels,
                          std::size_t first = 0) {
  TORCH_CHECK(pyramid.size() == channels.size(), who, ": pyramid must have ", channels.size(), " levels, got ",
              pyramid.size());
  for (std::size_t i = first; i < channels.size(); ++i)
    TORCH_CHECK(pyramid[i].defined() && pyramid[i].dim() == 4 && pyramid[i].size(1) == channels[i], who,
                ": pyramid[", i, "] must be [n, ", channels[i], ", H, W], got ",
                pyramid[i].defined() ? pyramid[i].sizes() : at::IntArrayRef{});
}

/// Errors: c10::Error unless the options describe a decoder of four levels.
inline void check_options(const char* who, const std::vector<int64_t>& channels, int64_t width) {
  TORCH_CHECK(channels.size() == 4, who, ": options.channels must have 4 entries, got ", channels.size());
  TORCH_CHECK(width >= 8, who, ": options.width must be at least 8, got ", width);
}

}  // namespace moecod::expert::decoder
