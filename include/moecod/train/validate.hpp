#pragma once
#include <ATen/ops/cat.h>
#include <nlohmann/json.hpp>
#include <torch/nn/module.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "moecod/core/keep_modes.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/model/answers.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/image_iou.hpp"
#include "moecod/train/scored_rows.hpp"

namespace moecod::train {

/// A model's score on a validation set.
struct Validation {
  std::vector<double> experts;      ///< [E] mean IoU of each expert alone
  double ensemble = 0;              ///< mean IoU of the routed mixture
  double uniform = 0;               ///< mean IoU of the mean of all experts
  Monitor::Report routing;

  int64_t best_expert() const {
    return std::max_element(experts.begin(), experts.end()) - experts.begin();
  }

  std::string summary() const {
    char text[120];
    std::snprintf(text, sizeof text, "validation IoU: best expert %.3f (%lld), ensemble %.3f",
                  experts[std::size_t(best_expert())], static_cast<long long>(best_expert()), ensemble);
    return text;
  }

  /// val_iou of each expert, the ensemble and the uniform mean; usage, max_violation and noise_floor, null where the
  /// stage does not route.
  void add_to(nlohmann::ordered_json& json, bool routed) const {
    nlohmann::ordered_json& iou = json["val_iou"];
    for (std::size_t e = 0; e < experts.size(); ++e) iou["expert_" + std::to_string(e)] = experts[e];
    iou["ensemble"] = ensemble;
    iou["uniform"] = uniform;
    json["usage"] = routed ? nlohmann::ordered_json(routing.usage) : nullptr;
    json["max_violation"] = routed ? nlohmann::ordered_json(routing.max_violation) : nullptr;
    json["noise_floor"] = routed ? nlohmann::ordered_json(routing.noise_floor) : nullptr;
  }
};

/// Scores every expert and the mixture, in eval mode and without gradients; modes are put back as they were.
/// The loader gives each rank of a group its own share of the set; all ranks get the score of the whole, to the last digit
/// of the IoUs what one process would get. Synchronises. Errors: what the loader throws.
template <class Model, data::source Source>
Validation validate(Model& model, data::Loader<Source>& loader, at::Device device, distributed::Group& group) {
  const KeepModes keep(model);
  model.eval();
  Monitor monitor;
  ScoredRows rows;
  loader.start(0);
  while (auto batch = loader.next()) {
    const DeviceBatch data = to_device(std::move(*batch), device);
    const Answers answers = ask_all(model, data.images);
    std::vector<at::Tensor> columns;
    std::vector<int64_t> everyone;
    for (std::size_t e = 0; e < answers.experts.size(); ++e) {
      columns.push_back(image_iou(answers.experts[e], data.masks));
      everyone.push_back(int64_t(e));
    }
    columns.push_back(image_iou(answers.routed(), data.masks));
    columns.push_back(image_iou(answers.mean(everyone), data.masks));
    rows.add(at::stack(columns, 1), data.indices);
    const bool labelled = std::all_of(data.regimes.begin(), data.regimes.end(), [](int64_t r) { return r >= 0; });
    monitor.observe(answers.routing, labelled ? data.regimes : std::vector<int64_t>{});
  }
  const at::Tensor mean = rows.of_all_ranks(group).mean(0).to(at::kCPU, at::kDouble);
  Validation out;
  const double* value = mean.template const_data_ptr<double>();
  out.experts.assign(value, value + Model::num_experts);
  out.ensemble = value[Model::num_experts];
  out.uniform = value[Model::num_experts + 1];
  out.routing = gathered(monitor, group).report();
  return out;
}

}  // namespace moecod::train
