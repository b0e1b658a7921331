#pragma once
// Masks of pictures from trained models, for the programs that write or score them. Needs no LibTorch to include.

#include <CLI/CLI.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "moecod/io/image.hpp"
#include "moecod/post/views.hpp"

namespace moecod::examples {

struct PredictionFlags {
  std::vector<std::string> checkpoints;
  std::string views, device = "auto";
  int64_t size = 0, batch_size = 8;
};

/// --checkpoint, and the flags that need it. Returns the option --checkpoint.
inline CLI::Option* add_prediction_flags(CLI::App& app, PredictionFlags& flags) {
  CLI::Option* checkpoint = app.add_option("--checkpoint", flags.checkpoints,
                                           "weights of a trained model (.safetensors); of several, the mean of their logits");
  app.add_option("--img-size", flags.size, "side that the model sees, a multiple of 32; 0 for that of its training")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->needs(checkpoint);
  app.add_option("--tta", flags.views,
                 "more views of each picture, whose logits are averaged: flip, vflip and scales, as in flip,0.75,1.25")
      ->check([](const std::string& list) {
        try {
          return post::views_from(list), std::string();
        } catch (const std::invalid_argument& error) {
          return std::string(error.what());
        }
      })
      ->needs(checkpoint);
  app.add_option("--batch-size", flags.batch_size, "pictures at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->needs(checkpoint);
  app.add_option("--device", flags.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->needs(checkpoint);
  return checkpoint;
}

/// Who was asked about a picture at one level, in descending order of their scores.
struct Decision {
  std::vector<int64_t> experts;
  std::vector<double> weights;
};

/// A picture's mask at its own size, 0 to 255, and for each checkpoint the decisions for the picture as it is: one of a
/// model-level mixture, four of a feature-level one, finest level first.
struct Prediction {
  Image mask;
  std::vector<std::vector<Decision>> decisions;
};

/// All checkpoints as one model, each looking at all views of a picture.
/// Errors of all members: std::runtime_error, which names the flag where one is wrong.
class MaskPredictor {
 public:
  /// Loads the checkpoints.
  explicit MaskPredictor(const PredictionFlags& flags);
  ~MaskPredictor();
  MaskPredictor(const MaskPredictor&) = delete;
  MaskPredictor& operator=(const MaskPredictor&) = delete;

  /// The names of a checkpoint's experts, in the order of their indices.
  const std::vector<std::string>& experts(std::size_t checkpoint) const;

  /// RGB pictures of any sizes, as one batch. Synchronises: copies the masks to the host.
  std::vector<Prediction> operator()(const std::vector<Image>& pictures);

 private:
  struct Models;
  std::unique_ptr<Models> models_;
};

}  // namespace moecod::examples
