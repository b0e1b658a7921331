#pragma once
// How good a trained model is on the test part of a data set, and how it routes there.

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "moecod/moe/routing.hpp"

namespace moecod::examples::ablation {

struct Answer {
  at::Tensor logits;             ///< [B, 1, H, W]
  std::vector<Routing> routing;  ///< one a level
};

/// {"metrics": {name: value}, "levels": [{usage, max_violation, noise_floor, entropy, label_information, ...}]}.
/// mean_iou is the mean over pictures at 0.5, at the side that the model sees; the others are as PySODMetrics computes
/// them, at each file's size.
/// Errors: what the reader throws; c10::Error where no picture can be read.
nlohmann::ordered_json score_test(const std::function<Answer(const at::Tensor& images)>& ask, const std::string& data_root,
                                  int64_t size, int64_t batch_size, int64_t max_bad, at::Device device);

}  // namespace moecod::examples::ablation
