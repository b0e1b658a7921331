#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/data/any_source.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/distributed/group.hpp"
#include "moecod/distributed/share.hpp"
#include "moecod/distributed/spread_experts.hpp"
#include "moecod/distributed/synchronise_statistics.hpp"
#include "moecod/moe/balance/state.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/clip.hpp"
#include "moecod/train/ema.hpp"
#include "moecod/train/flags.hpp"
#include "moecod/train/kept_statistics.hpp"
#include "moecod/train/late_scalar.hpp"
#include "moecod/train/metrics_log.hpp"
#include "moecod/train/optimizer.hpp"
#include "moecod/train/precision.hpp"
#include "moecod/train/progress.hpp"
#include "moecod/train/replicas.hpp"
#include "moecod/train/rng.hpp"
#include "moecod/train/schedule.hpp"
#include "moecod/train/stage.hpp"
#include "moecod/train/stop_signal.hpp"
#include "moecod/train/task.hpp"
#include "moecod/train/trainer_options.hpp"
#include "moecod/train/uploads.hpp"

namespace moecod::train {

/// What a trainer hands to its owner after each epoch, with the weights to be kept in the model's place.
template <class Score>
struct EpochResult {
  int64_t epoch = 0;
  double loss = 0;
  Score validation;
};

/// Trains one stage of a model; the same code for every stage, which is data, and for every kind of model, which is a
/// task (train/task.hpp): ModelLevelTask, FeatureLevelTask.
///
/// Each optimizer step: micro-batches with their backward passes; the balancing policies' counts are committed (zeroed
/// where the step is skipped); gradients are checked, clipped, applied. On CUDA a step reads three numbers of the step
/// before back, its loss, whether it was skipped, and whether to stop, and so waits for that step. Pictures are augmented
/// there (train/augment.hpp); for the CPU the loader does it. A run that is resumed continues bitwise on the CPU. After
/// SIGTERM it saves behind the next step, also inside an epoch, and ends with Stopped.
///
/// With a group of several ranks each trains on its own share of every epoch, `batch_size` pictures a micro-batch each: the
/// model starts as rank 0's, gradients are averaged while the last micro-batch's backward pass runs, and the balancing
/// policies' counts are summed in one message a step, which also says whether any rank was told to stop. Batch statistics
/// are each rank's own unless sync_bn; the running statistics that count are rank 0's, which the others take over at the end
/// of an epoch.
///
/// Errors: Stopped; std::runtime_error when max_bad_steps steps in a row had no finite gradient; what the data throws.
/// With several ranks an error of one is not seen by the others: whoever launched them has to end them.
template <task Task>
class Trainer {
 public:
  using Model = typename Task::model_type;
  using Result = EpochResult<typename Task::score_type>;

  /// `make` makes a model of the same options, for replicas; it may be empty where there is only one. Every rank of the
  /// group makes its trainer with the same arguments.
  Trainer(Model& model, Stage stage, TrainerOptions options, at::Device device,
          const std::function<std::unique_ptr<Model>()>& make = {},
          std::shared_ptr<distributed::Group> group = std::make_shared<distributed::Alone>())
      : group_(std::move(group)),
        model_(model),
        stage_(std::move(stage)),
        options_(std::move(options)),
        device_(device),
        precision_(default_precision(device, options_.amp)),
        loss_scale_(device, precision_),
        replicas_(model, options_.replicas, make),
        task_(stage_, device, options_.replicas),
        statistics_(model),
        sum_(at::zeros({}, at::TensorOptions(at::kDouble).device(device))),
        finite_(at::zeros_like(sum_)),
        skipped_(device),
        stopping_(device) {
    TORCH_CHECK(options_.batch_size % options_.replicas == 0, "--batch-size ", options_.batch_size,
                " must be a multiple of --replicas ", options_.replicas);
    TORCH_CHECK(group_->world() == 1 || options_.replicas == 1, "--replicas ", options_.replicas,
                " are for a single process; this is one of ", group_->world(), " ranks");
    for (int64_t r = 0; r < replicas_.count(); ++r) enter(stage_, replicas_[r]);
    distributed::share_model(*group_, model_);
    distributed::spread_experts(model_, group_);
    optimizer_ = std::make_unique<Optimizer>(parameter_groups(model_, stage_.rate_factors), options_.optimizer);
    if (options_.use_ema) ema_ = std::make_unique<Ema>(model_, options_.ema_decay);
    if (options_.sync_bn) distributed::synchronise_statistics(model_, group_);
    for (const at::Tensor& parameter : distributed::shared_parameters(model_))
      if (parameter.requires_grad()) shared_.push_back(parameter);
    for (const at::Tensor& parameter : distributed::spread_parameters(model_))
      if (parameter.requires_grad()) spread_.push_back(parameter);
    sync_ = group_->average_gradients(shared_);
    seed_generators(static_cast<uint64_t>(options_.seed) * 1000 + static_cast<uint64_t>(stage_.number), group_->rank());
  }

  /// Trains from the epoch that was resumed, or the first. `after_epoch` sees each epoch's result while the weights to
  /// be kept (the average, if there is one) are in the model; `save` is then called with the live weights, and may ask
  /// for state(). Both are called on every rank, with the same model and result; files and `log`, which may be null, are for
  /// rank 0 to write. `validation` gives this rank's share.
  void fit(const data::AnySource& training, data::Loader<data::AnySource>& validation, MetricsLog* log,
           const std::function<void(const Result&)>& after_epoch, const std::function<void()>& save) {
    const int64_t batches = training.size() / (options_.batch_size * group_->world());
    TORCH_CHECK(batches >= options_.accumulation_steps, "the training set has ", training.size(),
                " pictures, fewer than one optimizer step of ",
                options_.batch_size * options_.accumulation_steps * group_->world());
    TORCH_CHECK(validation.source().size() >= group_->world(), "the validation set has ", validation.source().size(),
                " pictures, fewer than one for each of ", group_->world(), " ranks");
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
                     .augment = data::Augment::preset(options_.augment), .augment_later = device_.is_cuda(),
                     .workers = options_.workers,
                     .rank = group_->rank(), .world = group_->world(),
                     .seed = static_cast<uint64_t>(options_.seed) + 7919 * static_cast<uint64_t>(stage_.number)});
      loader.start(epoch_, begin_ * options_.accumulation_steps);
      Uploads uploads(loader, device_);
      const auto start = std::chrono::steady_clock::now();
      Progress progress("stage " + std::to_string(stage_.number) + " epoch " + std::to_string(epoch_ + 1) + "/" +
                            std::to_string(options_.epochs),
                        steps, group_->rank() == 0 ? stderr : nullptr);
      LateScalar shown(device_);
      const int64_t begun = begin_;
      for (int64_t step = begun; step < steps; ++step) {
        const double done = double(epoch_ * steps + step) / double(steps * options_.epochs);
        const at::Tensor loss = optimizer_step(uploads, schedule(epoch_ * steps + step), done);
        // A loss that is not finite belongs to a step that was skipped.
        sum_.add_(at::where(loss.isfinite(), loss.to(at::kDouble), at::zeros_like(sum_)));
        finite_.add_(loss.isfinite());
        shown.push(loss);
        const std::optional<double> before = shown.before();
        progress.update(step + 1, before ? "loss " + std::to_string(*before).substr(0, 6) : "");
        // The answer to the step before, so that nothing waits for this one; behind the last step it is waited for.
        const std::optional<double> stopping = step + 1 < steps ? stopping_.before() : stopping_.last();
        if (stopping.value_or(0) > 0) {
          begin_ = step + 1;
          share_buffers();
          save_whole(save);
          stop_.clear();
          throw Stopped("stopped by SIGTERM in epoch " + std::to_string(epoch_ + 1) + " behind step " +
                        std::to_string(begin_) + " of " + std::to_string(steps));
        }
      }
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      at::Tensor losses = at::stack({sum_, finite_});
      group_->sum(losses);
      Result result{.epoch = epoch_, .loss = (losses[0] / losses[1].clamp_min(1)).template item<double>(), .validation = {}};
      // Saved here as well, so that what happens during validation costs no training.
      begin_ = steps;
      share_buffers();
      save_whole(save);
      begin_ = 0;
      sum_.zero_();
      finite_.zero_();
      {
        std::optional<Ema::Swap> averaged;
        if (ema_) averaged.emplace(*ema_);
        const distributed::GatheredExperts whole(model_, group_);
        result.validation = task_.score(model_, validation, *group_);
        progress.finish(summary(result));
        after_epoch(result);
      }
      if (log != nullptr) log->write(record(result, schedule((epoch_ + 1) * steps - 1), (epoch_ + 1) * steps,
                       seconds / double(std::max<int64_t>(1, steps - begun))));
      ++epoch_;
      save_whole(save);
      --epoch_;
    }
  }

  /// What has to be kept beside the weights, and put back by load_state; what each rank has of its own is [ranks, ...].
  /// To be called on every rank.
  StateDict state() const {
    StateDict out, own;
    // With experts spread over ranks the optimizer's state and the averages are not the same on all of them.
    StateDict& either = spread_.empty() ? out : own;
    add_state(either, "optimizer.", optimizer_->state());
    if (ema_) add_state(either, "ema.", ema_->state());
    add_state(out, "loss_scale.", loss_scale_.state());
    add_state(own, "task.", task_.state());
    add_state(own, "epoch.", {{"sum", sum_}, {"finite", finite_}});
    add_state(own, "random.", random_state(device_));
    for (const auto& [name, tensor] : own) out.emplace_back(name, group_->gather(tensor).to(at::kCPU));
    return out;
  }
  nlohmann::ordered_json progress() {
    // The flag of the last step has not been looked at yet.
    const std::optional<double> last = skipped_.last();
    const int64_t bad_steps = !last ? bad_steps_ : *last > 0 ? bad_steps_ + 1 : 0;
    return {{"stage", stage_.number}, {"epoch", epoch_}, {"begin", begin_}, {"step", step_}, {"bad_steps", bad_steps},
            {"ranks", group_->world()}, {"options", options_to_json(options_)}};
  }

  /// Continues from a checkpoint whose weights are in the model already.
  /// Errors: std::runtime_error or c10::Error for one of another stage or other trained parameters.
  void load_state(const Checkpoint& from) {
    const int64_t stage = from.progress.at("stage");
    TORCH_CHECK(stage == stage_.number, "--resume-from: the checkpoint is of stage ", stage, ", this run is stage ",
                stage_.number);
    const int64_t ranks = from.progress.at("ranks");
    TORCH_CHECK(ranks == group_->world(), "--resume-from: the run to continue has ", ranks, " ranks, this one ",
                group_->world(), "; a run goes on with as many as it began with");
    check_same_options(from.progress.at("options"));
    const auto own = [&](const char* prefix) {
      StateDict out;
      for (const auto& [name, tensor] : part_of_state(from.state, prefix)) out.emplace_back(name, tensor[group_->rank()]);
      return out;
    };
    const auto either = [&](const char* prefix) {
      return spread_.empty() ? part_of_state(from.state, prefix) : own(prefix);
    };
    optimizer_->load_state(either("optimizer."));
    if (ema_) ema_->load_state(either("ema."));
    loss_scale_.load_state(part_of_state(from.state, "loss_scale."));
    copy_state("the task's state (is --replicas the same?)", own("task."), task_.state());
    copy_state("the epoch's state", own("epoch."), {{"sum", sum_}, {"finite", finite_}});
    replicas_.hand_on_buffers();
    set_random_state(own("random."), device_);
    epoch_ = from.progress.at("epoch");
    begin_ = from.progress.at("begin");
    step_ = from.progress.at("step");
    bad_steps_ = from.progress.at("bad_steps");
  }

  int64_t epoch() const { return epoch_; }

 private:
  at::Tensor optimizer_step(Uploads<data::AnySource>& uploads, double rate, double done) {
    const double share = 1.0 / double(options_.accumulation_steps * replicas_.count());
    at::Tensor total;
    statistics_.keep();
    sync_->begin_step();
    for (int64_t micro = 0; micro < options_.accumulation_steps; ++micro) {
      const std::optional<DeviceBatch> batch = uploads.next();
      TORCH_CHECK(batch, "the training set ran out of readable pictures in the middle of an epoch");
      const auto drawn = task_.draw(batch->images.size(0) / replicas_.count());
      const std::vector<at::Tensor> images = batch->images.chunk(replicas_.count());
      const std::vector<at::Tensor> masks = batch->masks.chunk(replicas_.count());
      std::vector<at::Tensor> losses(images.size());
      replicas_.run([&](int64_t r, Model& model) {
        const auto i = static_cast<std::size_t>(r);
        at::Tensor loss;
        {
          const Autocast autocast(device_, precision_);
          loss = task_.loss(r, model, images[i], masks[i], drawn, done) * share;
        }
        losses[i] = loss.detach();
        // 1, or NaN where the loss is not finite: then no gradient is, and all ranks skip the step.
        const at::Tensor seed = losses[i] * 0 + 1;
        loss = loss_scale_.apply(loss);
        if (micro + 1 == options_.accumulation_steps) loss = sync_->last_backward(loss);
        loss.backward(seed);
      });
      for (const at::Tensor& loss : losses) total = total.defined() ? total + loss : loss;
    }
    replicas_.reduce_gradients();
    const std::vector<at::Tensor> gradients = optimizer_->gradients();
    at::Tensor found_inf = loss_scale_.unscale(gradients);
    at::Tensor norm;
    if (!spread_.empty()) {
      std::tie(found_inf, norm) = agree(found_inf);
    } else if (options_.clip_norm > 0) {
      norm = gradient_norm(gradients);
    }
    if (options_.clip_norm > 0) clip_norm(gradients, options_.clip_norm, norm);
    bool asked = false;
    balance::commit(model_, [&](at::Tensor& counts) { asked = true; sum_counts(counts); }, 1 - found_inf.squeeze());
    if (!asked) {
      at::Tensor none = at::zeros({0}, at::TensorOptions(at::kLong).device(device_));
      sum_counts(none);
    }
    statistics_.restore_where(found_inf);
    optimizer_->step(rate, found_inf);
    loss_scale_.update(found_inf);
    optimizer_->zero_grad();
    replicas_.hand_on_buffers();
    if (ema_) ema_->update(step_);
    ++step_;
    check_finite(found_inf);
    return total;
  }

  /// Adds the counts of replicas and ranks, and asks in the same message whether any rank was told to stop.
  void sum_counts(at::Tensor& counts) {
    replicas_.add_counts(counts);
    at::Tensor message = at::cat({counts, at::full({1}, stop_.requested() ? 1 : 0, counts.options())});
    group_->sum(message);
    counts.copy_(message.slice(0, 0, counts.numel()));
    stopping_.push(message[counts.numel()]);
  }

  /// Whether any rank's gradients are not finite, and the norm of all ranks' together, where each has some of its own.
  std::pair<at::Tensor, at::Tensor> agree(const at::Tensor& found_inf) const {
    const auto square = [](const std::vector<at::Tensor>& parameters) {
      std::vector<at::Tensor> gradients;
      for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
      return gradients.empty() ? at::Tensor() : gradient_norm(gradients).square();
    };
    const at::Tensor own = square(spread_), shared = square(shared_);
    at::Tensor message = at::stack({found_inf.reshape({}), own});
    group_->sum(message);
    const at::Tensor all = shared.defined() ? shared + message[1] : message[1];
    return {message[0].clamp_max(1).reshape(found_inf.sizes()), all.sqrt()};
  }

  /// Saves on all ranks, with all experts in the model, and goes on when rank 0 is through.
  void save_whole(const std::function<void()>& save) {
    {
      const distributed::GatheredExperts whole(model_, group_);
      save();
    }
    group_->barrier();
  }

  /// Gives all ranks rank 0's running statistics, also in their averages.
  void share_buffers() {
    distributed::share_buffers(*group_, model_);
    if (ema_) ema_->copy_buffers();
  }

  /// A resumed run must have the options of the one that it continues, but for those that change no figure.
  void check_same_options(const nlohmann::ordered_json& recorded) const {
    check_same(recorded, options_to_json(options_), {"num-workers", "stop-after", "max-bad-steps"},
               "--resume-from: the run to continue");
  }

  /// Reads the flag of the step before.
  void check_finite(const at::Tensor& found_inf) {
    skipped_.push(found_inf);
    if (const std::optional<double> before = skipped_.before()) bad_steps_ = *before > 0 ? bad_steps_ + 1 : 0;
    if (bad_steps_ >= options_.max_bad_steps)
      throw std::runtime_error("the loss or a gradient was not finite in " + std::to_string(bad_steps_) +
                               " steps in a row; the last checkpoint is from before");
  }

  std::string summary(const Result& result) const {
    char text[40];
    std::snprintf(text, sizeof text, "loss %.4f | ", result.loss);
    return text + result.validation.summary();
  }

  nlohmann::ordered_json record(const Result& result, double rate, int64_t step, double seconds_per_step) const {
    nlohmann::ordered_json json{{"stage", stage_.number},  {"epoch", result.epoch}, {"step", step},
                                {"loss", result.loss},     {"learning_rate", rate}, {"seconds_per_step", seconds_per_step}};
    const bool routed = stage_.exposure == Exposure::routed || stage_.exposure == Exposure::all;
    result.validation.add_to(json, routed);
    return json;
  }

  std::shared_ptr<distributed::Group> group_;
  Model& model_;
  Stage stage_;
  TrainerOptions options_;
  at::Device device_;
  Precision precision_;
  LossScale loss_scale_;
  Replicas<Model> replicas_;
  Task task_;
  KeptStatistics statistics_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::vector<at::Tensor> shared_, spread_;  // trained parameters: of all ranks, and of this rank's experts alone
  std::unique_ptr<distributed::GradientSync> sync_;
  at::Tensor sum_, finite_;  // of the losses of the epoch so far, and how many there are
  LateScalar skipped_, stopping_;
  StopSignal stop_;
  int64_t epoch_ = 0, begin_ = 0, step_ = 0, bad_steps_ = 0;  // begin_: steps of the epoch that are done already
};

}  // namespace moecod::train
