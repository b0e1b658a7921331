#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace moecod::io {

namespace detail {
/// Errors: always; std::runtime_error naming what was tried, the file and the system's reason.
[[noreturn]] inline void throw_system(const char* what, const std::filesystem::path& path, int reason) {
  throw std::runtime_error(std::string("cannot ") + what + " " + path.string() + ": " + std::strerror(reason));
}
}  // namespace detail

/// A file that appears whole or not at all: bytes go to a temporary file in the same folder, and commit() makes them
/// durable and puts them in place of `path` in one step (fsync, rename, fsync of the folder).
///
/// Without a commit, as after an exception or on a full disk, the old file stays and the temporary one is removed.
/// Writers in different threads and processes do not meet: each has a temporary name of its own.
/// Errors: std::runtime_error naming the file and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path) : path_(path) {
    static std::atomic<unsigned long> serial{0};
    temporary_ = path;
    temporary_ += ".tmp." + std::to_string(::getpid()) + "." + std::to_string(serial.fetch_add(1));
    file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file_ < 0) detail::throw_system("create", path_, errno);
  }

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  ~AtomicFile() {
    if (file_ >= 0) ::close(file_);
    if (!committed_) ::unlink(temporary_.c_str());
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(file_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) detail::throw_system("write", path_, errno);
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Puts the file in its place; nothing may be written after it.
  void commit() {
    if (::fsync(file_) != 0) detail::throw_system("write", path_, errno);
    const int closed = ::close(std::exchange(file_, -1));
    if (closed != 0) detail::throw_system("write", path_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) detail::throw_system("rename a file to", path_, errno);
    committed_ = true;
    const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) detail::throw_system("open the folder of", path_, errno);
    const int synced = ::fsync(directory), reason = errno;
    ::close(directory);
    // Some network file systems cannot sync a folder and say so by EINVAL; the rename is in place all the same.
    if (synced != 0 && reason != EINVAL) detail::throw_system("sync the folder of", path_, reason);
  }

 private:
  std::filesystem::path path_, temporary_;
  int file_ = -1;
  bool committed_ = false;
};

/// A whole file in memory, read by the system page by page as it is touched.
///
/// The mapping is private and copy-on-write: writing to it changes neither the file nor other readers. Files that are
/// replaced (AtomicFile) stay readable through their mappings; a file that another program shortens in place does not.
/// Errors: std::runtime_error naming the file and the reason; only regular files can be mapped.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    // O_NONBLOCK: opening a pipe must fail below, not wait for a writer.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) detail::throw_system("open", path, errno);
    struct stat status {};
    if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(file);
      throw std::runtime_error("cannot read " + path.string() + ": not a regular file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    void* address = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0) : nullptr;
    const int reason = errno;
    ::close(file);
    if (address == MAP_FAILED) detail::throw_system("map", path, reason);
    data_ = static_cast<std::byte*>(address);
  }

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Writes a whole file through AtomicFile: a reader, or a crash, sees the old file or all of the new one.
/// Errors: std::runtime_error naming the file and the system's reason.
inline void write_atomically(const std::filesystem::path& path, std::span<const uint8_t> bytes) {
  AtomicFile file(path);
  file.write(std::as_bytes(bytes));
  file.commit();
}

inline void write_atomically(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace moecod::io
