#pragma once
#include <ATen/ops/randperm.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moecod/core/options.hpp"
#include "moecod/core/pyramid.hpp"
#include "moecod/data/any_source.hpp"
#include "moecod/moe/balance/state.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/clip.hpp"
#include "moecod/train/ema.hpp"
#include "moecod/train/flags.hpp"
#include "moecod/train/metrics_log.hpp"
#include "moecod/train/objective.hpp"
#include "moecod/train/optimizer.hpp"
#include "moecod/train/precision.hpp"
#include "moecod/train/progress.hpp"
#include "moecod/train/replicas.hpp"
#include "moecod/train/rng.hpp"
#include "moecod/train/schedule.hpp"
#include "moecod/train/validate.hpp"

namespace moecod::train {

/// How a stage is trained, whichever it is.
struct TrainerOptions {
  int64_t epochs = 40;
  int64_t batch_size = 12;           ///< pictures a micro-batch
  int64_t accumulation_steps = 1;    ///< micro-batches an optimizer step
  int64_t size = 448;                ///< side of the pictures, pixels
  int64_t small_size = 0;            ///< side in the first half of the epochs; 0: size
  double learning_rate = 3e-4;
  double min_learning_rate = 1e-6;
  double warmup = 0.05;              ///< share of the steps in which the learning rate rises
  Schedule::Shape scheduler = Schedule::Shape::Cosine;
  double clip_norm = 2;              ///< of all gradients together; 0: off
  Optimizer::Options optimizer;
  bool use_ema = false;
  double ema_decay = 0.999;
  bool amp = true;                   ///< mixed precision on GPUs
  int64_t workers = 2;               ///< threads that make batches
  int64_t replicas = 1;              ///< threads that each train a share of every micro-batch (train/replicas.hpp)
  std::string augment = "strong";
  int64_t stop_after = 0;            ///< epochs of this run, after which it ends and may be resumed; 0: all
  int64_t max_bad_steps = 50;        ///< steps in a row without a finite gradient that end the run
  int64_t seed = 0;

  static constexpr auto options = std::make_tuple(
      option(&TrainerOptions::epochs, "epochs", "passes over the training set", at_least(1)),
      option(&TrainerOptions::batch_size, "batch-size", "pictures a micro-batch", at_least(1)),
      option(&TrainerOptions::accumulation_steps, "accumulation-steps", "micro-batches an optimizer step", at_least(1)),
      option(&TrainerOptions::size, "img-size", "side of the pictures in pixels, a multiple of 32", at_least(32)),
      option(&TrainerOptions::small_size, "small-size",
             "side in the first half of the epochs, a multiple of 32; 0 for img-size", at_least(0)),
      option(&TrainerOptions::learning_rate, "lr", "peak learning rate", above(0)),
      option(&TrainerOptions::min_learning_rate, "min-lr", "last learning rate", at_least(0)),
      option(&TrainerOptions::warmup, "warmup", "share of the steps in which the rate rises", between(0, 1)),
      option(&TrainerOptions::scheduler, "scheduler", "course of the learning rate", Schedule::shapes),
      option(&TrainerOptions::clip_norm, "clip-norm", "limit on the gradients' norm; 0 for none", at_least(0)),
      nested(&TrainerOptions::optimizer),
      option(&TrainerOptions::use_ema, "use-ema", "validate and save a moving average of the weights"),
      option(&TrainerOptions::ema_decay, "ema-decay", "of the moving average", between(0, 0.99999)),
      option(&TrainerOptions::amp, "amp", "mixed precision on GPUs"),
      option(&TrainerOptions::workers, "num-workers", "threads that make batches", at_least(0)),
      option(&TrainerOptions::replicas, "replicas",
             "threads that each train a share of every micro-batch, as ranks would; on the CPU", at_least(1)),
      option(&TrainerOptions::augment, "augment", "augmentation of training pictures",
             choices("none", "sinet_v2", "zoomnext", "strong")),
      option(&TrainerOptions::stop_after, "stop-after", "end this run after so many epochs, to be resumed; 0 for all",
             at_least(0)),
      option(&TrainerOptions::max_bad_steps, "max-bad-steps", "skipped steps in a row that end the run", at_least(1)),
      option(&TrainerOptions::seed, "seed", "of all random choices", at_least(0)));
};

/// What a trainer hands to its owner after each epoch, with the weights to be kept in the model's place.
struct EpochResult {
  int64_t epoch = 0;
  double loss = 0;
  Validation validation;
};

/// Trains one stage of a model; the same code for every stage, which is data.
///
/// Each optimizer step: micro-batches with their backward passes; the balancing policies' counts are committed (zeroed
/// where the step is skipped); gradients are checked, clipped, applied. On CUDA a step reads two numbers of the step
/// before back, its loss and whether it was skipped, and so waits for that step. A run that is resumed continues bitwise on the
/// CPU. Errors: std::runtime_error when max_bad_steps steps in a row had no finite gradient; what the data throws.
template <class Model>
class Trainer {
 public:
  /// `make` makes a model of the same options, for replicas; it may be empty where there is only one.
  Trainer(Model& model, Stage stage, TrainerOptions options, at::Device device,
          const std::function<std::unique_ptr<Model>()>& make = {})
      : model_(model),
        stage_(std::move(stage)),
        options_(std::move(options)),
        device_(device),
        precision_(default_precision(device, options_.amp)),
        loss_scale_(device, precision_),
        replicas_(model, options_.replicas, make) {
    TORCH_CHECK(options_.batch_size % options_.replicas == 0, "--batch-size ", options_.batch_size,
                " must be a multiple of --replicas ", options_.replicas);
    for (int64_t r = 0; r < replicas_.count(); ++r) {
      enter(stage_, replicas_[r]);
      responsibility_.push_back(std::make_unique<Responsibility>(Model::num_experts));
      responsibility_.back()->to(device);
    }
    optimizer_ = std::make_unique<Optimizer>(parameter_groups(model_, stage_.rate_factors), options_.optimizer);
    if (options_.use_ema) ema_ = std::make_unique<Ema>(model_, options_.ema_decay);
    seed_generators(static_cast<uint64_t>(options_.seed) * 1000 + static_cast<uint64_t>(stage_.number));
  }

  /// Trains from the epoch that was resumed, or the first. `after_epoch` sees each epoch's result while the weights to
  /// be kept (the average, if there is one) are in the model; `save` is then called with the live weights.
  void fit(const data::AnySource& training, data::Loader<data::AnySource>& validation, MetricsLog& log,
           const std::function<void(const EpochResult&)>& after_epoch, const std::function<void()>& save) {
    const int64_t batches = training.size() / options_.batch_size;
    TORCH_CHECK(batches >= options_.accumulation_steps, "the training set has ", training.size(),
                " pictures, fewer than one optimizer step of ", options_.batch_size * options_.accumulation_steps);
    const int64_t steps = batches / options_.accumulation_steps;
    Schedule schedule{.shape = options_.scheduler,
                      .peak = options_.learning_rate,
                      .floor = std::min(options_.min_learning_rate, options_.learning_rate),
                      .warmup_steps = int64_t(options_.warmup * double(steps * options_.epochs)),
                      .total_steps = steps * options_.epochs,
                      .cycles = 3};
    const int64_t last = options_.stop_after > 0 ? std::min(options_.epochs, epoch_ + options_.stop_after) : options_.epochs;
    for (; epoch_ < last; ++epoch_) {
      const int64_t size = options_.small_size > 0 && epoch_ < options_.epochs / 2 ? options_.small_size : options_.size;
      data::Loader<data::AnySource> loader(
          training, {.batch = options_.batch_size, .height = size, .width = size, .train = true,
                     .augment = data::Augment::preset(options_.augment), .workers = options_.workers,
                     .seed = static_cast<uint64_t>(options_.seed) + 7919 * static_cast<uint64_t>(stage_.number)});
      loader.start(epoch_);
      const auto start = std::chrono::steady_clock::now();
      Progress progress("stage " + std::to_string(stage_.number) + " epoch " + std::to_string(epoch_ + 1) + "/" +
                            std::to_string(options_.epochs),
                        steps);
      at::Tensor sum = at::zeros({}, at::TensorOptions(at::kDouble).device(device_)), shown;
      for (int64_t step = 0; step < steps; ++step) {
        const double done = double(epoch_ * steps + step) / double(steps * options_.epochs);
        const at::Tensor loss = optimizer_step(loader, schedule(epoch_ * steps + step), done);
        sum.add_(loss.detach());
        // The note shows the loss of the step before.
        progress.update(step + 1, shown.defined() ? "loss " + std::to_string(shown.template item<double>()).substr(0, 6) : "");
        shown = loss.detach();
      }
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      EpochResult result{.epoch = epoch_, .loss = sum.template item<double>() / double(steps), .validation = {}};
      {
        std::optional<Ema::Swap> averaged;
        if (ema_) averaged.emplace(*ema_);
        result.validation = validate(model_, validation, device_);
        progress.finish(summary(result));
        after_epoch(result);
      }
      log.write(record(result, schedule((epoch_ + 1) * steps - 1), (epoch_ + 1) * steps, seconds / double(steps)));
      ++epoch_;
      save();
      --epoch_;
    }
  }

  /// What has to be kept beside the weights, and put back by load_state.
  StateDict state() const {
    StateDict out;
    add_state(out, "optimizer.", optimizer_->state());
    if (ema_) add_state(out, "ema.", ema_->state());
    add_state(out, "loss_scale.", loss_scale_.state());
    for (std::size_t r = 0; r < responsibility_.size(); ++r)
      add_state(out, "responsibility." + std::to_string(r) + ".", state_dict(*responsibility_[r]));
    add_state(out, "random.", random_state(device_));
    return out;
  }
  nlohmann::ordered_json progress() const {
    return {{"stage", stage_.number}, {"epoch", epoch_}, {"step", step_}, {"bad_steps", bad_steps_},
            {"options", options_to_json(options_)}};
  }

  /// Continues from a checkpoint whose weights are in the model already.
  /// Errors: std::runtime_error or c10::Error for one of another stage or other trained parameters.
  void load_state(const Checkpoint& from) {
    const int64_t stage = from.progress.at("stage");
    TORCH_CHECK(stage == stage_.number, "--resume-from: the checkpoint is of stage ", stage, ", this run is stage ",
                stage_.number);
    check_same_options(from.progress.at("options"));
    optimizer_->load_state(part_of_state(from.state, "optimizer."));
    if (ema_) ema_->load_state(part_of_state(from.state, "ema."));
    loss_scale_.load_state(part_of_state(from.state, "loss_scale."));
    for (std::size_t r = 0; r < responsibility_.size(); ++r)
      copy_state("responsibility (is --replicas the same?)",
                 part_of_state(from.state, "responsibility." + std::to_string(r) + "."), state_dict(*responsibility_[r]));
    replicas_.hand_on_buffers();
    set_random_state(part_of_state(from.state, "random."), device_);
    epoch_ = from.progress.at("epoch");
    step_ = from.progress.at("step");
    bad_steps_ = from.progress.at("bad_steps");
  }

  int64_t epoch() const { return epoch_; }

 private:
  at::Tensor optimizer_step(data::Loader<data::AnySource>& loader, double rate, double done) {
    at::Tensor total;
    for (int64_t micro = 0; micro < options_.accumulation_steps; ++micro) {
      auto batch = loader.next();
      TORCH_CHECK(batch, "the training set ran out of readable pictures in the middle of an epoch");
      const DeviceBatch data = to_device(std::move(*batch), device_);
      const std::optional<Routing> drawn = draw(data.images.size(0) / replicas_.count());
      const std::vector<at::Tensor> images = data.images.chunk(replicas_.count());
      const std::vector<at::Tensor> masks = data.masks.chunk(replicas_.count());
      std::vector<at::Tensor> losses(images.size());
      replicas_.run([&](int64_t r, Model& model) {
        const auto i = static_cast<std::size_t>(r);
        const at::Tensor loss = share_of_loss(model, *responsibility_[i], images[i], masks[i], drawn, done);
        loss_scale_.apply(loss).backward();
        losses[i] = loss.detach();
      });
      for (const at::Tensor& loss : losses) total = total.defined() ? total + loss : loss;
    }
    replicas_.reduce_gradients();
    const std::vector<at::Tensor> gradients = optimizer_->gradients();
    const at::Tensor found_inf = loss_scale_.unscale(gradients);
    if (options_.clip_norm > 0) clip_norm(gradients, options_.clip_norm);
    balance::commit(model_, [this](at::Tensor& counts) { replicas_.add_counts(counts); }, 1 - found_inf.squeeze());
    optimizer_->step(rate, found_inf);
    loss_scale_.update(found_inf);
    optimizer_->zero_grad();
    replicas_.hand_on_buffers();
    if (ema_) ema_->update(step_);
    ++step_;
    check_finite(found_inf);
    return total;
  }

  /// The part of an optimizer step's loss that one replica's share of a micro-batch makes up.
  at::Tensor share_of_loss(Model& model, Responsibility& responsibility, const at::Tensor& images,
                           const at::Tensor& masks, const std::optional<Routing>& drawn, double done) {
    const Autocast autocast(device_, precision_);
    const Scene scene = model.look(images);
    const Decision decision = drawn ? Decision{*drawn, *drawn} : decide(model, scene);
    auto out = model.mixture->run(scene, decision.executed);
    if constexpr (requires { out.auxiliary_loss; }) {
      // What balances is the router's own choice, not the one that is executed so that every expert learns.
      if (decision.own.logits.defined()) out.auxiliary_loss = model.mixture->balance->loss(decision.own);
    }
    OwnLosses losses;
    if (stage_.objective.own > 0 || stage_.objective.answer > 0 || stage_.objective.router > 0)
      losses = own_losses(*model.mixture->experts, out.parts, masks, done);
    return total_loss(stage_.objective, out, losses, responsibility, masks, done,
                      1.0 / double(options_.accumulation_steps * replicas_.count()));
  }

  /// The routing of stages that do not ask the router, the same for all replicas.
  std::optional<Routing> draw(int64_t rows) {
    const int64_t experts = Model::num_experts;
    if (stage_.exposure == Exposure::only) return Routing::to(stage_.expert, rows, experts, device_);
    if (stage_.exposure != Exposure::drawn) return std::nullopt;
    const at::Tensor drawn = at::randperm(experts, at::kLong);
    const int64_t* p = drawn.const_data_ptr<int64_t>();
    return Routing::to(std::vector<int64_t>(p, p + std::min(experts, stage_.experts_per_step)), rows, experts, device_);
  }

  /// The routing to execute, and the router's own.
  struct Decision {
    Routing executed, own;
  };

  Decision decide(Model& model, const Scene& scene) {
    const Routing own = model.mixture->route(scene);
    Routing executed = own;
    if (stage_.exposure == Exposure::all) {
      // Every expert runs; those that were not chosen have weight 0 in the answer.
      executed = Routing::all(scene.image.size(0), Model::num_experts, device_);
      executed.weights = own.dense_weights();
      executed.logits = own.logits;
      executed.scores = own.scores;
    }
    if (stage_.objective.detach_gates) executed.weights = executed.weights.detach();
    return {executed, own};
  }

  /// A resumed run must have the options of the one that it continues, but for those that change no figure.
  void check_same_options(const nlohmann::ordered_json& recorded) const {
    const nlohmann::ordered_json mine = options_to_json(options_);
    for (const auto& [flag, value] : mine.items()) {
      if (flag == "num-workers" || flag == "stop-after" || flag == "max-bad-steps") continue;
      TORCH_CHECK(recorded.contains(flag) && recorded.at(flag) == value, "--resume-from: the run to continue had --",
                  flag, " ", recorded.contains(flag) ? recorded.at(flag).dump() : "(none)", ", this one has ",
                  value.dump());
    }
  }

  /// Reads the flag of the step before.
  void check_finite(const at::Tensor& found_inf) {
    if (earlier_.defined()) bad_steps_ = earlier_.item<float>() > 0 ? bad_steps_ + 1 : 0;
    earlier_ = found_inf;
    if (bad_steps_ >= options_.max_bad_steps)
      throw std::runtime_error("the loss or a gradient was not finite in " + std::to_string(bad_steps_) +
                               " steps in a row; the last checkpoint is from before");
  }

  std::string summary(const EpochResult& result) const {
    char text[160];
    const Validation& v = result.validation;
    std::snprintf(text, sizeof text, "loss %.4f | validation IoU: best expert %.3f (%lld), ensemble %.3f", result.loss,
                  v.experts[std::size_t(v.best_expert())], static_cast<long long>(v.best_expert()), v.ensemble);
    return text;
  }

  nlohmann::ordered_json record(const EpochResult& result, double rate, int64_t step, double seconds_per_step) const {
    nlohmann::ordered_json iou;
    for (std::size_t e = 0; e < result.validation.experts.size(); ++e)
      iou["expert_" + std::to_string(e)] = result.validation.experts[e];
    iou["ensemble"] = result.validation.ensemble;
    iou["uniform"] = result.validation.uniform;
    const Monitor::Report& routing = result.validation.routing;
    const bool routed = stage_.exposure == Exposure::routed || stage_.exposure == Exposure::all;
    nlohmann::ordered_json json{{"stage", stage_.number},   {"epoch", result.epoch},
                                {"step", step},             {"loss", result.loss},
                                {"learning_rate", rate},    {"val_iou", iou},
                                {"seconds_per_step", seconds_per_step}};
    json["usage"] = routed ? nlohmann::ordered_json(routing.usage) : nullptr;
    json["max_violation"] = routed ? nlohmann::ordered_json(routing.max_violation) : nullptr;
    json["noise_floor"] = routed ? nlohmann::ordered_json(routing.noise_floor) : nullptr;
    return json;
  }

  Model& model_;
  Stage stage_;
  TrainerOptions options_;
  at::Device device_;
  Precision precision_;
  LossScale loss_scale_;
  Replicas<Model> replicas_;
  std::vector<std::unique_ptr<Responsibility>> responsibility_;  // one a replica
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
  at::Tensor earlier_;
  int64_t epoch_ = 0, step_ = 0, bad_steps_ = 0;
};

}  // namespace moecod::train
