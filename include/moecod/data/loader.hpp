#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "moecod/data/augment.hpp"
#include "moecod/data/augment_draw.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/data/sampler.hpp"
#include "moecod/io/image.hpp"

namespace moecod::data {

/// A batch as plain row-major buffers of bytes; train::to_device makes the tensors that a model takes of it.
struct Batch {
  int64_t size = 0;            // B, samples
  int64_t height = 0;          // H
  int64_t width = 0;           // W
  std::vector<uint8_t> images; // [B, H, W, 3], RGB
  std::vector<uint8_t> masks;  // [B, H, W], from 128 on the object
  std::vector<int64_t> regimes;     // [B], -1 where there is no label
  std::vector<int64_t> indices;     // [B], of the source
  std::vector<std::string> names;   // [B]
  std::vector<Image> full_masks;    // [B], masks at their own size, when asked for (evaluation is done on them)
  std::vector<AugmentDraw> draws;   // [B], what is left to be done to images and masks; empty: nothing
  int64_t epoch = 0;
  int64_t position = 0;        // of this batch in the epoch, 0, 1, ...
};

/// Adds a sample to a batch, resized to the batch's height and width.
inline void append(Batch& batch, const Sample& sample, int64_t index) {
  const Image image = resize(sample.image, batch.height, batch.width);
  const Image mask = resize(sample.mask, batch.height, batch.width);
  batch.images.insert(batch.images.end(), image.pixels.begin(), image.pixels.end());
  batch.masks.insert(batch.masks.end(), mask.pixels.begin(), mask.pixels.end());
  batch.regimes.push_back(sample.regime);
  batch.indices.push_back(index);
  batch.names.push_back(sample.name);
  ++batch.size;
}

struct LoaderOptions {
  int64_t batch = 8;             // samples a batch and rank
  int64_t height = 96;           // of the batch, pixels
  int64_t width = 96;
  bool train = true;             // shuffled, augmented, full batches; else in order, every sample once
  Augment augment{};             // in training
  bool augment_later = false;    // only draw it and leave the rest to train::to_device
  int64_t workers = 2;           // threads; 0 makes each batch inside next()
  int64_t ahead = 0;             // batches made before they are asked for; 0: two more than workers, so that all have work
  bool full_masks = false;       // also keep the masks at their own size
  int64_t rank = 0;
  int64_t world = 1;
  uint64_t seed = 0;
};

/// Reads, augments and batches a source with a pool of threads.
///
///   Loader loader(Folder(open(root, Split::Train)), LoaderOptions{.batch = 8});
///   for (int64_t epoch = 0; epoch < epochs; ++epoch) {
///     loader.start(epoch);                       // start(epoch, position) resumes inside an epoch
///     while (auto batch = loader.next()) { ... }
///   }
///
/// Batches come in the order that Sampler fixes and are the same bits for any number of workers: a worker makes a
/// whole batch, a sample's augmentation is keyed on (seed, epoch, index), and finished batches wait in a bounded ring
/// until their turn. In training a bad_sample is replaced by the next one of the source; in evaluation it is left
/// out, so its batch is smaller, or skipped if nothing is left. Any other exception of a worker is rethrown by the
/// `next` whose batch it was; the call after that goes on behind it. Destruction waits for the samples in work, no
/// longer.
///
/// `next` and `start` are for one consumer thread. Touches no device.
/// Errors: std::invalid_argument for options out of range; std::logic_error for `next` before `start`; what the source
/// throws.
template <source Source>
class Loader {
 public:
  using Options = LoaderOptions;

  Loader(Source source, LoaderOptions options) : source_(std::move(source)), options_(options) {
    if (options_.batch <= 0 || options_.height <= 0 || options_.width <= 0 || options_.workers < 0 ||
        options_.ahead < 0) {
      throw std::invalid_argument("Loader: expected batch, height, width > 0 and workers, ahead >= 0, got " +
                                  std::to_string(options_.batch) + ", " + std::to_string(options_.height) + ", " +
                                  std::to_string(options_.width) + ", " + std::to_string(options_.workers) + ", " +
                                  std::to_string(options_.ahead));
    }
    if (options_.ahead == 0) options_.ahead = options_.workers + 2;
    count_ = static_cast<int64_t>(sampler().indices(0).size());
  }
  ~Loader() { stop(); }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  const Source& source() const { return source_; }
  const Options& options() const { return options_; }
  /// Batches of an epoch on this rank.
  int64_t batches() const { return (count_ + options_.batch - 1) / options_.batch; }

  /// Begins an epoch at a position; what was in work for another is dropped.
  /// Errors: std::invalid_argument for an epoch or position outside 0..batches().
  void start(int64_t epoch, int64_t position = 0) {
    if (epoch < 0 || position < 0 || position > batches()) {
      throw std::invalid_argument("Loader::start: expected epoch >= 0 and position in 0.." + std::to_string(batches()) +
                                  ", got " + std::to_string(epoch) + " and " + std::to_string(position));
    }
    stop();
    order_ = sampler().indices(epoch);
    epoch_ = epoch;
    taken_ = claimed_ = position;
    started_ = true;
    ring_.assign(static_cast<std::size_t>(options_.ahead), Slot{});
    for (int64_t i = 0; i < options_.workers; ++i) {
      workers_.emplace_back([this](const std::stop_token& stopping) { work(stopping); });
    }
  }

  int64_t epoch() const { return epoch_; }
  /// Of the batch that `next` gives next: what a checkpoint keeps, with the epoch.
  int64_t position() const { return taken_; }

  /// The next batch of the epoch, or none at its end.
  std::optional<Batch> next() {
    if (!started_) throw std::logic_error("Loader: next() before start()");
    while (taken_ < batches()) {
      Batch batch = workers_.empty() ? make(taken_++) : take();
      if (batch.size > 0) return batch;
    }
    return std::nullopt;
  }

 private:
  struct Slot {
    bool ready = false;
    Batch batch;
    std::exception_ptr error;
  };

  Batch take() {
    std::unique_lock lock(mutex_);
    Slot& slot = ring_[static_cast<std::size_t>(taken_ % options_.ahead)];
    changed_.wait(lock, [&slot] { return slot.ready; });
    Slot done = std::exchange(slot, Slot{});
    ++taken_;
    lock.unlock();
    changed_.notify_all();
    if (done.error) std::rethrow_exception(done.error);
    return std::move(done.batch);
  }

  Sampler sampler() const {
    return {source_.size(), options_.batch, options_.rank, options_.world, options_.train, options_.seed};
  }

  void work(const std::stop_token& stopping) {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, stopping, [this] { return claimed_ == batches() || claimed_ < taken_ + options_.ahead; });
      if (stopping.stop_requested() || claimed_ == batches()) return;
      const int64_t position = claimed_++;
      lock.unlock();
      Slot slot;
      try {
        slot.batch = make(position, stopping);
      } catch (...) {
        slot.error = std::current_exception();
      }
      slot.ready = true;
      lock.lock();
      ring_[static_cast<std::size_t>(position % options_.ahead)] = std::move(slot);
      changed_.notify_all();
    }
  }

  void stop() {
    for (std::jthread& worker : workers_) worker.request_stop();
    workers_.clear();
  }

  Batch make(int64_t position, const std::stop_token& stopping = {}) const {
    Batch batch;
    batch.height = options_.height;
    batch.width = options_.width;
    batch.epoch = epoch_;
    batch.position = position;
    const int64_t end = std::min(count_, (position + 1) * options_.batch);
    for (int64_t i = position * options_.batch; i < end && !stopping.stop_requested(); ++i) {
      const int64_t wanted = order_[static_cast<std::size_t>(i)];
      for (int64_t other = 0;; ++other) {
        const int64_t index = (wanted + other) % source_.size();
        try {
          Sample sample = source_.sample(epoch_, index);
          if (options_.train) {
            const Random random{options_.seed, static_cast<uint64_t>(epoch_), static_cast<uint64_t>(index), 0xA06};
            const AugmentDraw drawn = options_.augment.draw(sample, random);
            if (options_.augment_later) {
              batch.draws.push_back(drawn);
            } else {
              sample = augmented(std::move(sample), drawn);
            }
          }
          append(batch, sample, index);
          if (options_.full_masks) batch.full_masks.push_back(std::move(sample.mask));
          break;
        } catch (const bad_sample&) {
          if (!options_.train) break;
          if (other + 1 == source_.size()) throw;
        }
      }
    }
    return batch;
  }

  Source source_;
  Options options_;
  int64_t count_ = 0;
  std::vector<int64_t> order_;
  int64_t epoch_ = 0;
  bool started_ = false;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  int64_t taken_ = 0;    // batches given to the consumer, those before the start included
  int64_t claimed_ = 0;  // batches taken up by workers
  std::vector<Slot> ring_;
  std::vector<std::jthread> workers_;  // last: joined before the members they use go
};

}  // namespace moecod::data
