#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "moecod/post/mean_logits.hpp"

namespace moecod::post {

/// Several models as one: the mean of their logits.
///
///     ensemble(images) = (1 / n) sum over k of model_k(images)
///
/// A model is anything that takes images [B, 3, H, W] and gives logits [B, 1, h, w]: checkpoints of one model, models of
/// different types, models with test-time augmentation (`Augmented`). They are asked in the order given.
/// Synchronises: as its models. Errors: c10::Error for no models, or logits of different shapes.
class Ensemble {
 public:
  using Model = std::function<at::Tensor(const at::Tensor& images)>;

  explicit Ensemble(std::vector<Model> models) : models_(std::move(models)) {
    TORCH_CHECK(!models_.empty(), "Ensemble: needs at least one model");
  }

  at::Tensor operator()(const at::Tensor& images) const {
    MeanLogits mean;
    for (const Model& model : models_) mean.add(model(images));
    return mean.mean();
  }

 private:
  std::vector<Model> models_;
};

}  // namespace moecod::post
