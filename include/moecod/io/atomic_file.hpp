#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moecod::io {

/// Writes `bytes` to `path` so that a reader, or a crash, sees the old file or the whole new one: a temporary file in
/// the same folder, fsync, rename. Writers of different threads and processes use different temporary names.
/// Errors: std::runtime_error naming the file and the system's reason; the temporary file is removed.
inline void write_atomically(const std::filesystem::path& path, std::span<const uint8_t> bytes) {
  static std::atomic<uint64_t> serial{0};
  const std::string temporary =
      path.string() + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(serial.fetch_add(1));
  const auto fail = [&](const char* step) {
    const std::string reason = std::strerror(errno);
    ::unlink(temporary.c_str());
    throw std::runtime_error(std::string("cannot ") + step + " " + path.string() + ": " + reason);
  };
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) fail("create");
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::write(file, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int reason = errno;
      ::close(file);
      errno = reason;
      fail("write");
    }
    done += static_cast<std::size_t>(count);
  }
  if (::fsync(file) != 0) {
    const int reason = errno;
    ::close(file);
    errno = reason;
    fail("write");
  }
  if (::close(file) != 0) fail("write");
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename to");
}

inline void write_atomically(const std::filesystem::path& path, std::string_view text) {
  write_atomically(path, std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

}  // namespace moecod::io
