#pragma once
// A trained model of either kind behind one face, for programs that only ask it.

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "examples/camo_model.hpp"
#include "examples/feature_model.hpp"

namespace moecod::examples {

/// Who was asked at one level: the experts chosen and their weights, both [B, K].
struct LevelDecision {
  at::Tensor experts, weights;
};

/// logits [B, 1, H, W]; a decision for a model-level mixture, four for a feature-level one, finest level first.
struct Asked {
  at::Tensor logits;
  std::vector<LevelDecision> levels;
};

struct LoadedModel {
  std::function<Asked(const at::Tensor& images)> ask;
  std::vector<std::string> experts;  ///< names, in the order of their indices
  int64_t size = 0;                  ///< side of the pictures it was trained on
};

static_assert(std::is_same_v<FeatureModel::mixture_type::router_type::granularity, rows::Images>,
              "moecod: predict tells who was asked about each picture; a router by position decides about positions");

/// The model of a weights file of either trainer, in eval mode on `device`. Errors: as load_camo.
inline LoadedModel load_model(const std::filesystem::path& path, at::Device device) {
  const io::Metadata about = io::SafetensorsFile(io::detail::weights_file(path)).metadata();
  LoadedModel out{.size = recorded_size(path)};
  if (const auto found = about.find(feature_model_key); found != about.end()) {
    check_variant<FeatureModel>(path.string(), about);
    FeatureModelOptions options;
    train::options_from_json(nlohmann::json::parse(found->second), options);
    const auto model = std::make_shared<FeatureModel>(feature_options(options));
    io::load_state(*model, io::read_state(path));
    model->eval();
    model->to(device);
    out.experts.assign(feature_expert_names.begin(), feature_expert_names.end());
    out.ask = [model](const at::Tensor& images) {
      auto answer = model->forward(images);
      Asked asked{.logits = std::move(answer.maps.logits)};
      for (const Routing& level : answer.routing) asked.levels.push_back({level.experts, level.weights});
      return asked;
    };
  } else {
    const std::shared_ptr<Camo> model = load_camo(path);
    model->to(device);
    out.experts = expert_names;
    out.ask = [model](const at::Tensor& images) {
      RoutedLogits answer = (*model)(images, WithRouting{});
      return Asked{std::move(answer.logits), {{answer.top_k_indices, answer.top_k_weights}}};
    };
  }
  return out;
}

}  // namespace moecod::examples
