#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/records.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/io/image.hpp"
#include "moecod/io/image_file.hpp"

namespace moecod::data {

/// A source that reads pairs of files. Masks are cut at 128, so 0/1, 0/255 and anti-aliased masks all come out as
/// 0 or 255 (a mask whose largest value is 1 is scaled first).
///
/// A mask of another size than its image is resized to the image's size; a pair that cannot be read raises
/// bad_sample. Either is reported once, by name, and counted; `problems()` lists them. More than `max_bad` unreadable
/// pairs (with the images that had no mask to begin with) are an error that ends the run.
/// Thread-safe. Errors: std::runtime_error past `max_bad`; std::out_of_range for an index that does not exist.
class Folder {
 public:
  struct Options {
    int64_t max_bad = 10;                             // unreadable pairs tolerated, >= 0
    std::function<void(const std::string&)> report =  // told of each problem, one call at a time
        [](const std::string& problem) { std::cerr << "moecod data: " << problem << '\n'; };
  };

  Folder(Records records, Options options)
      : records_(std::move(records)), options_(std::move(options)), log_(std::make_unique<Log>()) {
    for (const std::string& problem : records_.problems) note(problem, true);
  }
  explicit Folder(Records records) : Folder(std::move(records), Options()) {}

  int64_t size() const { return static_cast<int64_t>(records_.records.size()); }
  const std::vector<Record>& records() const { return records_.records; }

  Sample sample(int64_t /*epoch*/, int64_t index) const {
    if (index < 0 || index >= size()) {
      throw std::out_of_range("Folder: expected an index in 0.." + std::to_string(size() - 1) + ", got " +
                              std::to_string(index));
    }
    const Record& record = records_.records[static_cast<std::size_t>(index)];
    try {
      Image image = io::read_rgb(record.image);
      Image mask = io::read_gray(record.mask);
      uint8_t largest = 0;
      for (const uint8_t value : mask.pixels) largest = std::max(largest, value);
      mask = binarize(std::move(mask), largest == 1 ? 1 : 128);
      if (mask.height != image.height || mask.width != image.width) {
        note(record.name + ": mask of " + std::to_string(mask.height) + " x " + std::to_string(mask.width) +
                 " resized to the image's " + std::to_string(image.height) + " x " + std::to_string(image.width),
             false);
        mask = binarize(resize(mask, image.height, image.width));
      }
      return {std::move(image), std::move(mask), record.regime, record.name};
    } catch (const std::runtime_error& error) {
      const std::string problem = record.name + ": " + error.what();
      note(problem, true);
      throw bad_sample(problem);
    }
  }

  /// Unreadable pairs and images without a mask, so far.
  int64_t bad() const {
    const std::lock_guard lock(log_->mutex);
    return log_->bad;
  }
  /// Masks resized, so far.
  int64_t resized() const {
    const std::lock_guard lock(log_->mutex);
    return static_cast<int64_t>(log_->problems.size()) - log_->bad;
  }
  std::vector<std::string> problems() const {
    const std::lock_guard lock(log_->mutex);
    std::vector<std::string> out;
    for (const auto& [problem, is_bad] : log_->problems) out.push_back(problem);
    return out;
  }

 private:
  struct Log {
    std::mutex mutex;
    std::map<std::string, bool> problems;
    int64_t bad = 0;
  };

  void note(const std::string& problem, bool is_bad) const {
    const std::lock_guard lock(log_->mutex);
    if (log_->problems.emplace(problem, is_bad).second) {
      log_->bad += is_bad;
      if (options_.report) options_.report(problem);
    }
    if (is_bad && log_->bad > options_.max_bad) {
      throw std::runtime_error("Folder: " + std::to_string(log_->bad) + " unreadable pairs, more than max_bad = " +
                               std::to_string(options_.max_bad) + "; the last: " + problem);
    }
  }

  Records records_;
  Options options_;
  std::unique_ptr<Log> log_;
};

static_assert(source<Folder>);

}  // namespace moecod::data
