// Images per second of stage 3 of the model-level model on one or several GPUs: the trainer itself, from its loader to its
// optimizer, on pictures in memory.
//
//   torchrun --standalone --nproc-per-node=4 --no-python bench_training --routing balanced

#include <ATen/Context.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/ops/tensor.h>
#include <CLI/CLI.hpp>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/balanced_routing.hpp"
#include "examples/camo_model.hpp"
#include "examples/job.hpp"
#include "examples/model_level_recipe.hpp"
#include "moecod/train/model_level_task.hpp"
#include "moecod/train/trainer.hpp"
#include "moecod/train/uploads.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;

/// Pictures of noise, each with a disc for an object.
class Noise {
 public:
  Noise(int64_t count, int64_t side) {
    for (int64_t n = 0; n < count; ++n) {
      data::Sample sample{.image = Image(side, side, 3), .mask = Image(side, side, 1)};
      uint64_t state = static_cast<uint64_t>(n) * 77 + 1;
      for (uint8_t& value : sample.image.pixels) {
        state = state * 6364136223846793005ULL + 1;
        value = static_cast<uint8_t>(state >> 56);
      }
      for (int64_t y = 0; y < side; ++y)
        for (int64_t x = 0; x < side; ++x)
          if ((y - side / 2) * (y - side / 2) + (x - side / 3) * (x - side / 3) < side * side / 16)
            sample.mask.pixels[std::size_t(y * side + x)] = 255;
      samples_.push_back(std::move(sample));
    }
  }
  int64_t size() const { return pictures_; }
  data::Sample sample(int64_t, int64_t index) const { return samples_[std::size_t(index) % samples_.size()]; }
  int64_t pictures_ = 0;  // an epoch

 private:
  std::vector<data::Sample> samples_;
};

struct NoScore {
  std::string summary() const { return ""; }
  void add_to(nlohmann::ordered_json&, bool) const {}
};

enum class Load { balanced, free, dense };

/// Stage 3 with its own objective, the router asked and trained; who runs is what the router says, all, or a given
/// routing in which every expert gets as many pictures. Notes how long the device works on each forward pass and loss.
struct StepTask {
  using model_type = Camo;
  using score_type = NoScore;
  StepTask(const train::Stage& stage, at::Device device, int64_t)
      : stage_(stage), responsibility_(std::make_shared<train::Responsibility>(Camo::num_experts)) {
    responsibility_->to(device);
  }
  std::monostate draw(int64_t) { return {}; }

  at::Tensor loss(int64_t, Camo& model, const at::Tensor& images, const at::Tensor& masks, std::monostate, double progress) {
    auto& [begin, end] =
        forward_.emplace_back(at::cuda::CUDAEvent(cudaEventDefault), at::cuda::CUDAEvent(cudaEventDefault));
    begin.record();
    const Scene scene = model.look(images);
    Routing routing = model.mixture->route(scene);
    if (load != Load::free)
      routing = bench::balanced(std::move(routing), Camo::num_experts, load == Load::dense ? Camo::num_experts : 2);
    if (stage_.objective.detach_gates) routing.weights = routing.weights.detach();
    auto out = model.mixture->run(scene, routing);
    const train::OwnLosses losses = train::own_losses(*model.mixture->experts, out.parts, masks, progress);
    const at::Tensor total = train::total_loss(stage_.objective, out, losses, *responsibility_, masks, progress);
    end.record();
    return total;
  }
  NoScore score(Camo&, data::Loader<data::AnySource>&, distributed::Group& group) {
    // The last epoch counts; those before warm up.
    double milliseconds = 0;
    for (auto& [begin, end] : forward_) milliseconds += begin.elapsed_time(end) / double(forward_.size());
    forward_.clear();
    const at::Tensor all = group.gather(at::tensor(milliseconds, at::kDouble));
    slowest_share = (all.max() / all.mean()).item<double>();
    return {};
  }
  StateDict state() const { return {}; }

  static inline Load load = Load::balanced;
  static inline double slowest_share = 1;  // forward time of the slowest rank over the mean of the ranks

 private:
  train::Stage stage_;
  std::shared_ptr<train::Responsibility> responsibility_;
  std::vector<std::pair<at::cuda::CUDAEvent, at::cuda::CUDAEvent>> forward_;
};

struct Options {
  JobOptions job{.device = "cuda"};
  std::string routing = "balanced";
  int64_t batch = 12, side = 448, steps = 20, epochs = 3, workers = 0;

  static constexpr auto options = std::make_tuple(
      option(&Options::routing, "routing", "who runs", choices("balanced", "free", "dense")),
      option(&Options::batch, "batch-size", "pictures of each rank", at_least(1)),
      option(&Options::side, "img-size", "pixels, a multiple of 32", at_least(32)),
      option(&Options::steps, "steps", "optimizer steps an epoch", at_least(2)),
      option(&Options::epochs, "epochs", "of which the last is measured", at_least(2)),
      option(&Options::workers, "num-workers", "threads of each rank's loader; 0 for its share of the cores", at_least(0)),
      nested(&Options::job));
};

/// Pictures per second of a loader that nobody waits for, or of its batches on their way to a device, what is left of the
/// augmentation included; the second of two epochs.
double loader_speed(const data::AnySource& source, const data::LoaderOptions& options,
                    std::optional<at::Device> device = std::nullopt) {
  data::Loader<data::AnySource> loader(source, options);
  double speed = 0;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    const auto begin = std::chrono::steady_clock::now();
    loader.start(epoch);
    if (device) {
      train::Uploads uploads(loader, *device);
      while (uploads.next()) {
      }
      c10::cuda::device_synchronize();
    } else {
      while (loader.next()) {
      }
    }
    speed = double(loader.batches() * options.batch) /
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  return speed;
}

int run(Options options) {
  const Job job = open_job(options.job);
  const int64_t world = job.group->world();
  if (options.workers == 0)
    options.workers = std::max<int64_t>(1, int64_t(std::thread::hardware_concurrency()) / world - 2);
  StepTask::load = options.routing == "free" ? Load::free : options.routing == "dense" ? Load::dense : Load::balanced;
  Noise noise(32, options.side);
  noise.pictures_ = options.batch * options.steps * world;
  const data::AnySource source(std::move(noise));

  CamoOptions model_options;
  train::TrainerOptions trainer_options;
  RecipeOptions recipe;
  apply_preset("full", 3, model_options, trainer_options, recipe);
  trainer_options.batch_size = options.batch;
  trainer_options.size = options.side;
  trainer_options.epochs = options.epochs;
  trainer_options.workers = options.workers;
  data::LoaderOptions loading{.batch = options.batch, .height = options.side, .width = options.side, .train = true,
                              .augment = data::Augment::preset(trainer_options.augment), .workers = options.workers,
                              .rank = job.group->rank(), .world = world};
  const double augmenting = loader_speed(source, loading);
  loading.augment_later = true;  // as the trainer has it on a GPU
  const double loader = loader_speed(source, loading), uploads = loader_speed(source, loading, job.device);
  at::manual_seed(0);
  Camo model(camo_options(model_options));
  model.to(job.device);
  replay_graphs(model, job.recorder);
  train::Trainer<StepTask> trainer(model, make_stage(3, -1, recipe), trainer_options, job.device, {}, job.group);
  data::Loader<data::AnySource> validation(source, {.batch = 1, .height = 32, .width = 32, .train = false, .workers = 0});
  const auto path = std::filesystem::temp_directory_path() / ("moecod_training_" + std::to_string(getpid()) + ".jsonl");
  {
    train::MetricsLog log(path);
    trainer.fit(source, validation, &log, [](const auto&) {}, [] {});
  }
  std::string line, last;
  for (std::ifstream in(path); std::getline(in, line);) last = line;
  std::filesystem::remove(path);
  const double seconds = nlohmann::json::parse(last).at("seconds_per_step");
  const auto memory = c10::cuda::CUDACachingAllocator::getDeviceStats(job.device.index());
  std::cout << nlohmann::ordered_json{{"ranks", world},
                                      {"routing", options.routing},
                                      {"batch", options.batch},
                                      {"side", options.side},
                                      {"cuda_graphs", options.job.cuda_graphs},
                                      {"workers", options.workers},
                                      {"loader_images_per_second", loader * double(world)},
                                      {"loader_augmenting_images_per_second", augmenting * double(world)},
                                      {"uploaded_images_per_second", uploads * double(world)},
                                      {"images_per_second", double(options.batch * world) / seconds},
                                      {"milliseconds_per_step", seconds * 1e3},
                                      {"slowest_over_mean_forward", StepTask::slowest_share},
                                      {"peak_gib", double(memory.allocated_bytes[0].peak) / double(1 << 30)}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Images per second of stage 3 on one or several GPUs.");
  Options options;
  train::add_flags(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const c10::Error& error) {
    report_error("bench_training", error.what_without_backtrace());
  } catch (const std::exception& error) {
    report_error("bench_training", error.what());
  }
  return 1;
}
