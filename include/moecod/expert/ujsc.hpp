#pragma once
#include <memory>
#include <vector>

#include "moecod/expert/decoder/dense_decoder.hpp"
#include "moecod/expert/decoder/feature_refinement.hpp"
#include "moecod/expert/decoder/search_attention.hpp"
#include "moecod/loss/deep_supervision.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/moe/rows.hpp"

namespace moecod::expert {

/// UJSC-style decoder: a first map, a search around it, features made anew there, and a second map.
///
///     initial = dense decoder (P1, P2, P3, P4)
///     P2' = search attention (P2, initial);   P3' = refinement (P2', P3);   P4' = refinement (P3', P4)
///     refined = second dense decoder (P1, P2', P3', P4')
///
/// The published network runs second copies of two backbone stages where the convolutional refinement stands, and
/// learns from salient objects too; without such data only its uncertainty half exists, which needs a discriminator:
/// loss/adversarial.hpp, not part of this expert's loss. Loss: structure(initial) + structure(refined).
///
/// Shapes: P_i [n, channels[i-1], H/2^(i+1), W/2^(i+1)] -> logits = refined [n, 1, H, W] at the image's size;
/// side = {initial} at stride 4. Synchronises: never. Errors: c10::Error on other shapes.
/// Source: Li et al. 2021 (UJSC), arXiv 2104.02628.
class Ujsc : public torch::nn::Module {
 public:
  struct Options {
    std::vector<int64_t> channels{64, 128, 320, 512};  ///< of the four levels, finest first
    int64_t width = 72;                                ///< channels of each decoder, >= 8
    double initial_logit = -2;                         ///< where both maps start; objects are rare
    loss::StructureForm structure = loss::StructureForm::weighted_bce;
  };
  using rows = moecod::rows::Images;
  using Output = decoder::Maps;

  explicit Ujsc(const Options& options) : options_(options) {
    decoder::check_options("Ujsc", options.channels, options.width);
    const auto dense = [&] {
      return std::make_shared<decoder::DenseDecoder>(options.channels, options.width, options.initial_logit);
    };
    const auto refinement = [&](std::size_t fine) {
      return std::make_shared<decoder::FeatureRefinement>(options.channels[fine], options.channels[fine + 1],
                                                          options.width);
    };
    initial_ = register_module("initial", dense());
    search_ = register_module("search", std::make_shared<decoder::SearchAttention>());
    refine3_ = register_module("refine3", refinement(1));
    refine4_ = register_module("refine4", refinement(2));
    refined_ = register_module("refined", dense());
  }
  Ujsc() : Ujsc(Options{}) {}

  static Levels input(const Scene& scene) { return Levels::of(scene); }

  Output forward(const Levels& input) {
    const Pyramid& p = input.pyramid;
    decoder::check_pyramid("Ujsc", p, options_.channels);
    const at::Tensor initial = initial_->forward(p);
    const at::Tensor p2 = search_->forward(p[1], initial);
    const at::Tensor p3 = refine3_->forward(p2, p[2]);
    const at::Tensor p4 = refine4_->forward(p3, p[3]);
    Output out;
    out.logits = decoder::at_image_size(refined_->forward({p[0], p2, p3, p4}), input.height, input.width);
    out.side = {initial};
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
  std::shared_ptr<decoder::DenseDecoder> initial_, refined_;
  std::shared_ptr<decoder::SearchAttention> search_;
  std::shared_ptr<decoder::FeatureRefinement> refine3_, refine4_;
};

}  // namespace moecod::expert
