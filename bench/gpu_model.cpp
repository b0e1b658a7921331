// The whole model-level model (85 M parameters, four complete decoders, two for each picture) on a GPU in bfloat16: pictures
// per second in inference and in training (forward, stage 3's losses, backward, AdamW), under a given routing in which
// every expert gets as many pictures. Beside the dispatchers the dense mixture of the same four.
//
//     bench_gpu_model --benchmark_out=model.json --benchmark_out_format=json
//     python bench/gpu_table.py model.json
#include "bench/balanced_routing.hpp"
#include "bench/gpu.hpp"
#include "examples/camo_model.hpp"
#include "examples/model_level_recipe.hpp"
#include "moecod/cuda/graph_recorder.hpp"
#include "moecod/moe/dispatch/concurrent.hpp"
#include "moecod/moe/dispatch/masked.hpp"
#include "moecod/moe/swap.hpp"
#include "moecod/train/model_level_task.hpp"
#include "moecod/train/optimizer.hpp"

namespace moecod::bench {
namespace {

constexpr int64_t side = 448, slots = 2;

AutocastGuard bfloat16() { return AutocastGuard({.device = at::kCUDA, .enabled = true, .dtype = at::kBFloat16, .cache = true}); }

template <class Model>
class Training {
 public:
  explicit Training(Model& model) : model_(model), stage_(stage()), responsibility_(Model::num_experts) {
    responsibility_.to(at::kCUDA);
    train::enter(stage_, model_);
    optimizer_ = std::make_unique<train::Optimizer>(train::parameter_groups(model_, stage_.rate_factors), options_.optimizer);
  }

  void operator()(const at::Tensor& images, const at::Tensor& masks) {
    optimizer_->zero_grad();
    at::Tensor total;
    {
      const AutocastGuard autocast = bfloat16();
      const Scene scene = model_.look(images);
      Routing routing = balanced(model_.mixture->route(scene), Model::num_experts, slots);
      if (stage_.objective.detach_gates) routing.weights = routing.weights.detach();
      auto out = model_.mixture->run(scene, routing);
      const train::OwnLosses losses = train::own_losses(*model_.mixture->experts, out.parts, masks, progress);
      total = train::total_loss(stage_.objective, out, losses, responsibility_, masks, progress);
    }
    total.backward();
    optimizer_->step(options_.learning_rate);
  }

 private:
  static constexpr double progress = 0.5;
  train::Stage stage() {
    examples::CamoOptions model;
    examples::RecipeOptions recipe;
    examples::apply_preset("full", 3, model, options_, recipe);
    return examples::make_stage(3, -1, recipe);
  }

  Model& model_;
  train::TrainerOptions options_;
  train::Stage stage_;
  train::Responsibility responsibility_;
  std::unique_ptr<train::Optimizer> optimizer_;
};

template <class Dispatch>
void whole_model(benchmark::State& state, int64_t batch, bool training, bool graphs) {
  using Model = swap_t<examples::Camo, Dispatch>;
  torch::manual_seed(1);
  Model model(examples::camo_options<Model>({}));
  model.to(at::kCUDA);
  if (graphs) replay_graphs(model, std::make_shared<cuda::GraphRecorder>());
  const auto options = at::TensorOptions(at::kFloat).device(at::kCUDA);
  const at::Tensor images = at::randn({batch, 3, side, side}, options).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor masks = (at::rand({batch, 1, side, side}, options) > 0.5).to(at::kFloat);
  std::unique_ptr<Training<Model>> step;
  if (training) step = std::make_unique<Training<Model>>(model);
  model.train(training);
  const auto round = [&] {
    if (training) return (*step)(images, masks);
    const torch::NoGradGuard no_grad;
    const AutocastGuard autocast = bfloat16();
    const Scene scene = model.look(images);
    model.mixture->run(scene, balanced(model.mixture->route(scene), Model::num_experts, slots));
  };
  c10::cuda::CUDACachingAllocator::resetPeakStats(0);
  const int64_t before = c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0].current;
  for (int i = 0; i < 4; ++i) round();
  at::cuda::device_synchronize();
  double seconds = 0;
  for (auto _ : state) state.SetIterationTime(seconds = median_seconds(round, 7));
  state.counters["images_per_second"] = static_cast<double>(batch) / seconds;
  state.counters["peak_MB"] =
      static_cast<double>(c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0].peak - before) / 1e6;
}

void add_models() {
  for (const bool training : {false, true})
    for (const int64_t batch : {12, 32, 64}) {
      const std::string name =
          std::string("whole_model/pass:") + (training ? "training" : "inference") + "/B:" + std::to_string(batch);
      const auto row = [&](const std::string& by, auto&& f) {
        add(name + "/by:" + by, [f](benchmark::State& state) {
          try {
            f(state);
          } catch (const c10::Error& error) {  // the dense mixture of 64 pictures may not fit
            state.SkipWithError(std::string(error.what_without_backtrace()).substr(0, 200).c_str());
          }
        });
      };
      row("dense", [=](benchmark::State& t) { whole_model<dispatch::Masked>(t, batch, training, true); });
      row("batched", [=](benchmark::State& t) { whole_model<dispatch::Batched>(t, batch, training, true); });
      row("concurrent", [=](benchmark::State& t) { whole_model<dispatch::Concurrent>(t, batch, training, true); });
      row("batched_plain", [=](benchmark::State& t) { whole_model<dispatch::Batched>(t, batch, training, false); });
    }
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  moecod::bench::add_models();
  return moecod::bench::run(argc, argv);
}
