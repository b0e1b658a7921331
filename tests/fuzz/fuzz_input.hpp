#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

/// The bytes of one input as a file, which is what the readers take.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, std::size_t size) : file_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    if (file_ < 0) std::abort();
    for (std::size_t at = 0; at < size;) {
      const ssize_t count = ::write(file_, data + at, size - at);
      if (count <= 0) std::abort();
      at += std::size_t(count);
    }
  }
  FuzzInput(const FuzzInput&) = delete;
  FuzzInput& operator=(const FuzzInput&) = delete;
  ~FuzzInput() { ::close(file_); }

  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};
