#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "moecod/io/file.hpp"

namespace moecod::train {

/// A file of JSON Lines: one object a line, appended by one write() each, so that readers and a kill see whole lines.
///
///     MetricsLog log(folder / "metrics.jsonl", /*epoch=*/13);
///     log.write({{"epoch", 13}, {"loss", 0.31}});
///
/// Numbers that are not finite become null, as JSON has no word for them. Needs no LibTorch.
class MetricsLog {
 public:
  /// Opens the file for appending and makes it if needed. Lines of epochs >= `epoch`, the first that is going to be
  /// run, are removed, so that a resumed run does not log an epoch twice; and so is a last line that was cut off.
  /// With epoch 0 a file that is there starts anew.
  /// Errors: std::runtime_error naming the file, or the line that is not JSON.
  explicit MetricsLog(const std::filesystem::path& path, int64_t epoch = 0) : path_(path) {
    if (std::filesystem::exists(path)) keep_before(epoch);
    file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file_ < 0) io::detail::throw_system("open", path, errno);
  }
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  ~MetricsLog() { ::close(file_); }

  /// Errors: std::runtime_error naming the file, for example when the disk is full.
  void write(const nlohmann::ordered_json& record) {
    const std::string line = record.dump() + "\n";
    ssize_t count = -1;
    do {
      count = ::write(file_, line.data(), line.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) io::detail::throw_system("write", path_, errno);
    if (static_cast<std::size_t>(count) != line.size()) io::detail::throw_system("write", path_, ENOSPC);
  }

 private:
  void keep_before(int64_t epoch) const {
    std::ifstream in(path_, std::ios::binary);
    std::string kept, line;
    for (int64_t number = 1; std::getline(in, line); ++number) {
      if (in.eof()) break;  // no newline: cut off
      const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!record.is_object())
        throw std::runtime_error(path_.string() + ": line " + std::to_string(number) + " is not a JSON object");
      if (record.value("epoch", int64_t{-1}) < epoch && epoch > 0) kept += line + "\n";
    }
    io::AtomicFile out(path_);
    out.write(kept);
    out.commit();
  }

  std::filesystem::path path_;
  int file_ = -1;
};

}  // namespace moecod::train
