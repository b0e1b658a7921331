#pragma once

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>

/// A new empty folder that goes away with the object.
class Scratch {
 public:
  Scratch() {
    static std::atomic<int> serial{0};
    path_ = std::filesystem::temp_directory_path() /
            ("moecod-test-" + std::to_string(::getpid()) + "-" + std::to_string(serial++));
    std::filesystem::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::filesystem::path& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};
