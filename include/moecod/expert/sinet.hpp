#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "moecod/expert/decoder/group_reversal.hpp"
#include "moecod/expert/decoder/partial_decoder.hpp"
#include "moecod/expert/decoder/receptive_field.hpp"
#include "moecod/loss/deep_supervision.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// SINet-style decoder: search for the object with a coarse map, then identify it level by level.
///
///     x_i = receptive field block (P_i), i = 2, 3, 4
///     S_g = neighbour connection decoder (x2, x3, x4)
///     S_4 = group reversal (x4, S_g);  S_3 = group reversal (x3, S_4);  S_2 = group reversal (x2, S_3)
///
/// Each guide is resized to its level first. Loss: structure(S_g) + structure(S_4) + structure(S_3) + structure(S_2),
/// all at the mask's size.
///
/// Shapes: P_i [n, channels[i-1], H/2^(i+1), W/2^(i+1)], P1 unused -> logits = S_2 [n, 1, H, W] at the image's size;
/// side = {S_g, S_4, S_3} at strides 8, 32, 16. Synchronises: never. Errors: c10::Error on other shapes.
/// Source: Fan et al. 2021 (SINet-V2), arXiv 2102.10274.
class SINet : public torch::nn::Module {
 public:
  struct Options {
    std::vector<int64_t> channels{64, 128, 320, 512};  ///< of the four levels, finest first
    int64_t width = 136;                               ///< channels of the decoder, >= 8
    double initial_logit = -2;                         ///< where all maps start; objects are rare
    loss::StructureForm structure = loss::StructureForm::weighted_bce;
  };
  using rows = moecod::rows::Images;
  using Output = decoder::Maps;

  explicit SINet(const Options& options) : options_(options) {
    decoder::check_options("SINet", options.channels, options.width);
    for (std::size_t i = 0; i < 3; ++i) {
      const std::string level = std::to_string(i + 2);
      fields_[i] = register_module(
          "field" + level, std::make_shared<decoder::ReceptiveField>(options.channels[i + 1], options.width));
      reversals_[i] = register_module(
          "reversal" + level, std::make_shared<decoder::GroupReversal>(options.width, options.initial_logit));
    }
    search_ = register_module("search", std::make_shared<decoder::PartialDecoder>(
                                            options.width, decoder::Connection::neighbour, options.initial_logit));
  }
  SINet() : SINet(Options{}) {}

  static Levels input(const Scene& scene) { return decoder::levels_from(scene, 1); }

  Output forward(const Levels& input) {
    decoder::check_pyramid("SINet", input.pyramid, options_.channels, 1);
    std::array<at::Tensor, 3> x;
    for (std::size_t i = 0; i < 3; ++i) x[i] = fields_[i]->forward(input.pyramid[i + 1]);
    Output out;
    at::Tensor map = search_->forward(x[0], x[1], x[2]);
    for (std::size_t i = 3; i-- > 0;) {
      out.side.push_back(map);
      map = reversals_[i]->forward(x[i], layers::resize_like(map, x[i]));
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
  std::array<std::shared_ptr<decoder::GroupReversal>, 3> reversals_;
  std::shared_ptr<decoder::PartialDecoder> search_;
};

}  // namespace moecod::expert
