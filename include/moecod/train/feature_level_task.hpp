#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moecod/core/keep_modes.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/image_iou.hpp"
#include "moecod/train/scored_rows.hpp"
#include "moecod/train/task.hpp"

namespace moecod::train {

/// How evenly a level's experts are used: within 0.05 of an even share each, at least half of one, or else; collapsed
/// where an expert gets less than a tenth of an even share.
inline const char* describe_usage(const std::vector<double>& usage) {
  const double even = 1.0 / double(usage.size());
  const auto [least, most] = std::minmax_element(usage.begin(), usage.end());
  if (*least < 0.1 * even) return "collapsed";
  if (*least >= even - 0.05 && *most <= even + 0.05) return "ideal";
  return *least >= 0.5 * even ? "good" : "uneven";
}

/// A feature-level model's score on a validation set, and how it routed in training and there.
struct FeatureScore {
  double iou = 0;                                 ///< mean IoU of the final map
  std::vector<std::vector<double>> trained_usage;  ///< [levels][E] shares since the score before; empty without training
  std::vector<Monitor::Report> levels;            ///< on the validation set, finest level first

  std::string summary() const {
    char text[32];
    std::snprintf(text, sizeof text, "validation IoU %.3f", iou);
    return text;
  }

  /// "experts good 0.12-0.21, ideal 0.15-0.18, ...": of each level, finest first, a word and the least and the largest
  /// share of an expert, in training or else in validation. A line of its own: four levels take up to 79 characters,
  /// where none is collapsed.
  std::string usage_summary() const {
    std::string out = "experts ";
    for (std::size_t i = 0; i < levels.size(); ++i) {
      const std::vector<double>& usage = trained_usage.empty() ? levels[i].usage : trained_usage[i];
      const auto [least, most] = std::minmax_element(usage.begin(), usage.end());
      char shares[32];
      std::snprintf(shares, sizeof shares, " %.2f-%.2f", *least, *most);
      out += (i == 0 ? "" : ", ") + std::string(describe_usage(usage)) + shares;
    }
    return out;
  }

  /// val_iou.ensemble; levels: usage, max_violation, noise_floor and entropy in validation, usage in training and words
  /// for it.
  void add_to(nlohmann::ordered_json& json, bool routed) const {
    json["val_iou"] = {{"ensemble", iou}};
    if (!routed) return;
    for (std::size_t i = 0; i < levels.size(); ++i) {
      nlohmann::ordered_json level{{"usage", levels[i].usage},
                                   {"max_violation", levels[i].max_violation},
                                   {"noise_floor", levels[i].noise_floor},
                                   {"entropy", levels[i].entropy}};
      if (!trained_usage.empty()) {
        level["trained_usage"] = trained_usage[i];
        level["balance"] = describe_usage(trained_usage[i]);
      }
      json["levels"].push_back(std::move(level));
    }
  }
};

/// Training of a FeatureLevel: the head's loss and, with a policy that has one, the levels' auxiliary losses.
/// Concept moecod::train::task.
template <class Model>
class FeatureLevelTask {
 public:
  using model_type = Model;
  using score_type = FeatureScore;

  FeatureLevelTask(const Stage&, at::Device device, int64_t replicas)
      : device_(device), counts_(std::size_t(replicas)) {
    const auto count = at::TensorOptions(at::kLong).device(device);
    for (auto& levels : counts_)
      for (std::size_t i = 0; i < levels_of_a_model; ++i) levels.push_back(at::zeros({Model::num_experts}, count));
  }

  std::monostate draw(int64_t) { return {}; }

  at::Tensor loss(int64_t replica, Model& model, const at::Tensor& images, const at::Tensor& masks, std::monostate,
                  double) {
    const auto out = model.forward(images);
    count(counts_[std::size_t(replica)], out.routing);
    at::Tensor total = model.head->loss(out.maps, masks).mean();
    if constexpr (requires { out.auxiliary_loss; }) total = total + out.auxiliary_loss;
    return total;
  }

  FeatureScore score(Model& model, data::Loader<data::AnySource>& loader, distributed::Group& group) {
    FeatureScore out;
    out.trained_usage = take_usage(group);
    const KeepModes keep(model);
    const at::NoGradGuard no_grad;
    model.eval();
    std::vector<Monitor> monitors;
    ScoredRows iou;
    loader.start(0);
    while (auto batch = loader.next()) {
      const DeviceBatch data = to_device(std::move(*batch), device_);
      const auto answer = model.forward(data.images);
      iou.add(image_iou(answer.maps.logits, data.masks), data.indices);
      monitors.resize(answer.routing.size());
      for (std::size_t i = 0; i < monitors.size(); ++i) monitors[i].observe(answer.routing[i]);
    }
    out.iou = iou.of_all_ranks(group).mean().template item<double>();
    for (const Monitor& monitor : monitors) out.levels.push_back(gathered(monitor, group).report());
    return out;
  }

  /// R.I: the counts of replica R's level I since the score before.
  StateDict state() const {
    StateDict out;
    for (std::size_t r = 0; r < counts_.size(); ++r)
      for (std::size_t i = 0; i < counts_[r].size(); ++i)
        out.emplace_back(std::to_string(r) + "." + std::to_string(i), counts_[r][i]);
    return out;
  }

 private:
  static void count(std::vector<at::Tensor>& counts, const std::vector<Routing>& routing) {
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < routing.size(); ++i) counts[i].add_(routing[i].counts);
  }

  /// The shares of each level's experts over all replicas and ranks, nothing where nothing was trained; starts anew.
  std::vector<std::vector<double>> take_usage(distributed::Group& group) {
    std::vector<std::vector<double>> out;
    for (std::size_t i = 0; i < counts_.front().size(); ++i) {
      at::Tensor total = counts_.front()[i].to(at::kDouble);
      for (std::size_t r = 1; r < counts_.size(); ++r) total = total + counts_[r][i];
      group.sum(total);
      const at::Tensor share = (total / total.sum().clamp_min(1)).to(at::kCPU);
      if (share.sum().template item<double>() == 0) return {};
      out.emplace_back(share.template const_data_ptr<double>(), share.template const_data_ptr<double>() + share.numel());
    }
    for (auto& levels : counts_)
      for (at::Tensor& counts : levels) counts.zero_();
    return out;
  }

  static constexpr std::size_t levels_of_a_model = 4;  // as FeatureLevel demands of its backbone

  at::Device device_;
  std::vector<std::vector<at::Tensor>> counts_;  // [replicas][levels], each [E] int64
};

}  // namespace moecod::train
