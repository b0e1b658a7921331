#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "moecod/core/state.hpp"
#include "moecod/io/checksum.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/weights.hpp"

namespace moecod::train {

/// All that a run needs to go on as if it had not stopped.
struct Checkpoint {
  StateDict weights = {};                ///< the model, under the names that files use
  io::Metadata about = {};               ///< goes into the weights file's header, for its readers
  StateDict state = {};                  ///< optimizer, average, loss scale, generators
  nlohmann::ordered_json progress = {};  ///< epoch, step, stage, options, place in the data
};

namespace detail {

inline std::string checksum(const std::filesystem::path& path) {
  const io::MappedFile file(path);
  return io::checksum_text(io::checksum(file.bytes()));
}

struct CheckpointFiles {
  std::filesystem::path weights, resume, next;

  explicit CheckpointFiles(const std::filesystem::path& stem)
      : weights(stem.string() + ".safetensors"),
        resume(stem.string() + ".resume.safetensors"),
        next(stem.string() + ".next.safetensors") {}

  /// What the resume file says about itself and about its weights file.
  nlohmann::ordered_json record() const {
    const io::SafetensorsFile file(resume);
    const auto found = file.metadata().find("moecod.resume");
    const auto json = found == file.metadata().end() ? nlohmann::ordered_json()
                                                     : nlohmann::ordered_json::parse(found->second, nullptr, false);
    if (!json.is_object() || !json.contains("weights") || !json["weights"].is_string() || !json.contains("progress"))
      throw std::runtime_error(resume.string() + " is not a resume state of moecod");
    return json;
  }

  /// Ends a save that was stopped between its last two steps, and says whether the two files belong together.
  bool settle(const std::string& expected) const {
    if (std::filesystem::exists(weights) && checksum(weights) == expected) return true;
    if (!std::filesystem::exists(next) || checksum(next) != expected) return false;
    std::filesystem::rename(next, weights);
    return true;
  }

  /// Removes the temporary files of saves that were killed.
  void sweep() const {
    const auto folder = resume.has_parent_path() ? resume.parent_path() : std::filesystem::path(".");
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      for (const auto& file : {next, resume})
        if (entry.path().filename().string().starts_with(file.filename().string() + ".tmp."))
          std::filesystem::remove(entry.path());
  }
};

}  // namespace detail

/// Saves STEM.safetensors (the weights) and STEM.resume.safetensors (everything else, with the weights' checksum).
///
/// A process that is killed, or a machine that stops, at any moment leaves the old pair or the new one. The steps are:
/// the new weights to STEM.next.safetensors; the resume file, replaced in one step: from here on the new pair counts;
/// the new weights renamed to their place. A save that ends before the last step is finished by whoever reads it.
/// One process saves under a stem at a time. Synchronises: copies the tensors to the host.
/// Errors: std::runtime_error naming the file; the old pair stays.
inline void save_checkpoint(const std::filesystem::path& stem, const Checkpoint& checkpoint) {
  const detail::CheckpointFiles files(stem);
  // The weights of an unfinished save are about to be overwritten, and may be the only ones that fit. A resume file
  // that cannot be read has none.
  if (std::filesystem::exists(files.next) && std::filesystem::exists(files.resume)) {
    try {
      files.settle(files.record().at("weights"));
    } catch (const std::runtime_error&) {
    }
  }
  files.sweep();
  io::write_state(files.next, checkpoint.weights, checkpoint.about);
  const nlohmann::ordered_json record{{"weights", detail::checksum(files.next)}, {"progress", checkpoint.progress}};
  io::write_state(files.resume, checkpoint.state, {{"moecod.resume", record.dump()}});
  std::filesystem::rename(files.next, files.weights);
}

/// Whether there is something to resume from under this stem.
inline bool checkpoint_exists(const std::filesystem::path& stem) {
  return std::filesystem::exists(detail::CheckpointFiles(stem).resume);
}

/// Reads what save_checkpoint wrote. The tensors lie in the mapped files, on the CPU.
/// Errors: std::runtime_error if a file is missing or damaged, or if the two are not of one save.
inline Checkpoint load_checkpoint(const std::filesystem::path& stem) {
  const detail::CheckpointFiles files(stem);
  if (!std::filesystem::exists(files.resume))
    throw std::runtime_error("nothing to resume from: " + files.resume.string() + " does not exist");
  const nlohmann::ordered_json record = files.record();
  if (!files.settle(record.at("weights")))
    throw std::runtime_error(files.weights.string() + " is missing, damaged or not of the same save as " +
                             files.resume.string() + " (their checksums differ)");
  return {.weights = io::read_state(files.weights),
          .about = io::SafetensorsFile(files.weights).metadata(),
          .state = io::read_state(files.resume),
          .progress = record.at("progress")};
}

}  // namespace moecod::train
