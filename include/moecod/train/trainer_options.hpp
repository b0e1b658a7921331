#pragma once
#include <cstdint>
#include <string>
#include <tuple>

#include "moecod/core/options.hpp"
#include "moecod/train/optimizer.hpp"
#include "moecod/train/schedule.hpp"

namespace moecod::train {

/// How a stage is trained, whichever it is.
struct TrainerOptions {
  int64_t epochs = 40;
  int64_t batch_size = 12;           ///< pictures a micro-batch and rank
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
  bool sync_bn = false;              ///< batch statistics over all ranks
  std::string augment = "strong";
  int64_t stop_after = 0;            ///< epochs of this run, after which it ends and may be resumed; 0: all
  int64_t max_bad_steps = 50;        ///< steps in a row without a finite gradient that end the run
  int64_t seed = 0;

  static constexpr auto options = std::make_tuple(
      option(&TrainerOptions::epochs, "epochs", "passes over the training set", at_least(1)),
      option(&TrainerOptions::batch_size, "batch-size", "pictures a micro-batch, of each rank", at_least(1)),
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
      option(&TrainerOptions::sync_bn, "sync-bn", "batch statistics over the pictures of all ranks"),
      option(&TrainerOptions::augment, "augment", "augmentation of training pictures",
             choices("none", "sinet_v2", "zoomnext", "strong")),
      option(&TrainerOptions::stop_after, "stop-after", "end this run after so many epochs, to be resumed; 0 for all",
             at_least(0)),
      option(&TrainerOptions::max_bad_steps, "max-bad-steps", "skipped steps in a row that end the run", at_least(1)),
      option(&TrainerOptions::seed, "seed", "of all random choices", at_least(0)));
};

}  // namespace moecod::train
