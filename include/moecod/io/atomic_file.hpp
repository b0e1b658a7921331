#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "moecod/io/file.hpp"

namespace moecod::io {

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
