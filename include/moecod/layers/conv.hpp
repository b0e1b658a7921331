#pragma once
#include <ATen/ops/conv2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cmath>
#include <optional>
#include <tuple>

#include "moecod/layers/stack.hpp"

namespace moecod::layers {

/// Sizes of a two-dimensional convolution. padding -1 keeps height and width at stride 1 and odd kernels.
struct Conv2dOptions {
  int64_t in = 1, out = 1;
  std::array<int64_t, 2> kernel{3, 3};
  std::array<int64_t, 2> stride{1, 1};
  std::array<int64_t, 2> padding{-1, -1};
  std::array<int64_t, 2> dilation{1, 1};
  int64_t groups = 1;
  bool bias = true;

  /// A square kernel of size k.
  static Conv2dOptions square(int64_t in, int64_t out, int64_t k, int64_t dilation = 1, bool bias = true) {
    return {.in = in, .out = out, .kernel = {k, k}, .dilation = {dilation, dilation}, .bias = bias};
  }
};

/// Two-dimensional convolution (cross-correlation) of one expert or of n stacked ones.
///
/// Shapes: x [M, in, H, W] -> [M, out, H', W']; weight [(n,) out, in / groups, kh, kw], bias [(n,) out].
/// Initial values: weight and bias uniform in +-1/sqrt(fan in), as torch.nn.Conv2d; stacked layers are filled from
/// single ones by their owner.
/// Layers of stride 1 run on CUDA by the operators of moecod::cuda, where they are there: without bias by
/// moecod::grouped_conv2d, stacked ones for sorted images and single ones in bfloat16 with a normalisation behind them
/// (conv_norm.hpp); those with as many groups as channels in and out by grouped_depthwise_conv2d, single ones in bfloat16
/// with GELU behind 3x3 filters. (Other single depthwise layers are faster by LibTorch, docs/performance.md.)
/// Synchronises: for sorted images on CUDA that no kernel takes; for a single layer on CUDA the first time that it has so
/// many rows.
template <class Layers = Single>
class Conv2d : public torch::nn::Module, public Decays {
 public:
  explicit Conv2d(const Conv2dOptions& options, Layers layers = {}) : options_(options) {
    TORCH_CHECK(options.groups >= 1 && options.in % options.groups == 0 && options.out % options.groups == 0,
                "Conv2d: in ", options.in,
                " and out ", options.out, " must be multiples of groups ", options.groups);
    for (int i = 0; i < 2; ++i)
      padding_[i] = options.padding[i] >= 0 ? options.padding[i] : options.dilation[i] * (options.kernel[i] - 1) / 2;
    const int64_t fan_in = options.in / options.groups;
    weight = register_parameter(
        "weight", at::zeros(layers.shape({options.out, fan_in, options.kernel[0], options.kernel[1]})));
    if (options.bias) bias = register_parameter("bias", at::zeros(layers.shape({options.out})));
    if constexpr (!Layers::stacked) reset_parameters();
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    if constexpr (Layers::stacked) {
      if (runs_grouped(x, group)) return std::get<0>(forward_grouped(x, group, /*moments=*/false));
      const Slices w(weight, group), b(bias, group);
      return for_each_expert(x, group, [&](const at::Tensor& rows, int64_t e) { return convolve(rows, w[e], b[e]); });
    } else {
      (void)group;
      return convolve(x, weight, bias);
    }
  }

  /// gelu(forward(x)): one pass over depthwise images where the kernels run, that keeps x alone for the backward pass.
  at::Tensor forward_gelu(const at::Tensor& x, const typename Layers::Group& group = {}) {
    const bool grouped = [&] {
      if constexpr (Layers::stacked) {
        return runs_grouped(x, group);
      } else {
        return in_bfloat16(x) && operators::find<operators::GroupedDepthwiseConv2d>() && x.dim() == 4 && x.size(0) > 0 &&
               options_.kernel == std::array<int64_t, 2>{3, 3} && options_.in % 8 == 0 && keeps_size();
      }
    }();
    return grouped && depthwise() ? depthwise_grouped(x, group, /*gelu=*/true) : at::gelu(forward(x, group));
  }

  /// Whether forward_grouped runs on such images.
  bool runs_grouped(const at::Tensor& x, const typename Layers::Group& group) const {
    if (options_.stride != std::array<int64_t, 2>{1, 1} || x.dim() != 4) return false;
    const bool dense = options_.groups == 1 && !options_.bias;
    if constexpr (Layers::stacked) {
      return (dense || depthwise()) && find_grouped<operators::GroupedConv2d>(x, group);
    } else {
      (void)group;
      const auto* takes = operators::find<operators::Conv2dTakes>();
      return takes && dense && x.size(0) > 0 && in_bfloat16(x) &&
             takes->call(options_.in, options_.out, x.size(2), x.size(3), options_.kernel, padding_, options_.dilation);
    }
  }

  /// All experts at once: y, and with `moments` those of y for BatchNorm2d::forward_grouped, or nothing.
  std::tuple<at::Tensor, std::optional<at::Tensor>> forward_grouped(const at::Tensor& x,
                                                                    const typename Layers::Group& group, bool moments) {
    if (depthwise()) return {depthwise_grouped(x, group, /*gelu=*/false), std::nullopt};
    return operators::find<operators::GroupedConv2d>()->call(x, as_stacked<Layers>(weight), offsets_of<Layers>(x, group),
                                                             padding_, options_.dilation, moments);
  }

  const Conv2dOptions& options() const { return options_; }

  at::Tensor weight, bias;

 private:
  void reset_parameters() {
    torch::NoGradGuard no_grad;
    const double bound = 1.0 / std::sqrt(static_cast<double>(weight[0].numel()));
    weight.uniform_(-bound, bound);
    if (bias.defined()) bias.uniform_(-bound, bound);
  }

  bool depthwise() const {
    return options_.groups > 1 && options_.groups == options_.in && options_.groups == options_.out;
  }

  bool keeps_size() const {
    constexpr std::array<int64_t, 2> ones{1, 1};
    return options_.stride == ones && options_.dilation == ones && padding_ == ones;
  }

  at::Tensor depthwise_grouped(const at::Tensor& x, const typename Layers::Group& group, bool gelu) const {
    const auto b = bias.defined() ? std::optional(as_stacked<Layers>(bias)) : std::nullopt;
    return operators::find<operators::GroupedDepthwiseConv2d>()->call(
        x, as_stacked<Layers>(weight), b, offsets_of<Layers>(x, group), padding_, options_.dilation, gelu);
  }

  at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) const {
    return at::conv2d(x, w, b, options_.stride, padding_, options_.dilation, options_.groups);
  }

  Conv2dOptions options_;
  std::array<int64_t, 2> padding_{};
};

}  // namespace moecod::layers
