#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/decoder/partial_decoder.hpp"
#include "moecod/expert/decoder/receptive_field.hpp"
#include "moecod/expert/decoder/reverse_attention.hpp"
#include "moecod/loss/deep_supervision.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// PraNet-style decoder: a global map from a parallel partial decoder, corrected by reverse attention on the raw
/// features of each level.
///
///     S_g = parallel partial decoder of the receptive field blocks of P2, P3, P4
///     S_4 = reverse attention (P4, S_g);  S_3 = reverse attention (P3, S_4);  S_2 = reverse attention (P2, S_3)
///
/// Each guide is resized to its level first. Reverse attention has 2 * width channels and three 5x5 convolutions on
/// P4, and width / 2, rounded up to a multiple of 8, and two 3x3 convolutions on P3 and P2: the published 256 and 64
/// at width 128. Loss: structure(S_g) + structure(S_4) + structure(S_3) + structure(S_2), all at the mask's size.
///
/// Shapes: P_i [n, channels[i-1], H/2^(i+1), W/2^(i+1)], P1 unused -> logits = S_2 [n, 1, H, W] at the image's size;
/// side = {S_g, S_4, S_3} at strides 8, 32, 16. Synchronises: never. Errors: c10::Error on other shapes.
/// Source: Fan et al. 2020 (PraNet), arXiv 2006.11392.
class PraNet : public torch::nn::Module {
 public:
  struct Options {
    std::vector<int64_t> channels{64, 128, 320, 512};  ///< of the four levels, finest first
    int64_t width = 120;                               ///< channels of the partial decoder, >= 8
    double initial_logit = -2;                         ///< where the global map starts; objects are rare
    loss::StructureForm structure = loss::StructureForm::weighted_bce;
  };
  using rows = moecod::rows::Images;
  using Output = decoder::Maps;

  explicit PraNet(const Options& options) : options_(options) {
    decoder::check_options("PraNet", options.channels, options.width);
    for (std::size_t i = 0; i < 3; ++i)
      fields_[i] =
          register_module("field" + std::to_string(i + 2),
                          std::make_shared<decoder::ReceptiveField>(options.channels[i + 1], options.width));
    global_ = register_module("global", std::make_shared<decoder::PartialDecoder>(
                                            options.width, decoder::Connection::parallel, options.initial_logit));
    const int64_t fine = (options.width / 2 + 7) / 8 * 8;
    const auto attention = [&](const char* name, const decoder::ReverseAttention::Options& sizes) {
      return register_module(name, std::make_shared<decoder::ReverseAttention>(sizes));
    };
    attention_[0] = attention(
        "attention2", {.in = options.channels[1], .width = fine, .kernel = 3, .depth = 2, .last_kernel = 3});
    attention_[1] = attention(
        "attention3", {.in = options.channels[2], .width = fine, .kernel = 3, .depth = 2, .last_kernel = 3});
    attention_[2] = attention("attention4", {.in = options.channels[3], .width = 2 * options.width});
  }
  PraNet() : PraNet(Options{}) {}

  static Levels input(const Scene& scene) { return decoder::levels_from(scene, 1); }

  Output forward(const Levels& input) {
    decoder::check_pyramid("PraNet", input.pyramid, options_.channels, 1);
    const Pyramid& p = input.pyramid;
    Output out;
    at::Tensor map = global_->forward(fields_[0]->forward(p[1]), fields_[1]->forward(p[2]), fields_[2]->forward(p[3]));
    for (std::size_t i = 3; i-- > 0;) {
      out.side.push_back(map);
      map = attention_[i]->forward(p[i + 1], layers::resize_like(map, p[i + 1]));
    }
    out.logits = decoder::at_image_size(map, input.height, input.width);
    return out;
  }

  at::Tensor loss(const Output& output, const at::Tensor& target, double /*progress*/) const {
    const at::Tensor weight = loss::structure_weight(target);
    return loss::deep_supervision(output.logits, output.side, target, [&](const at::Tensor& x, const at::Tensor& m) {
      return loss::structure(x, m, weight, options_.structure);
    });
  }

 private:
  Options options_;
  std::array<std::shared_ptr<decoder::ReceptiveField>, 3> fields_;
  std::shared_ptr<decoder::PartialDecoder> global_;
  std::array<std::shared_ptr<decoder::ReverseAttention>, 3> attention_;
};

}  // namespace moecod::expert
