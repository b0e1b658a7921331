#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

namespace moecod::io {

/// FNV-1a over 64-bit words, the last one filled up with zeros, begun with the length: finds damage and mix-ups, not
/// malice.
inline uint64_t checksum(std::span<const std::byte> bytes) {
  uint64_t hash = 14695981039346656037ULL ^ bytes.size();
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min(sizeof word, bytes.size() - at));
    hash = (hash ^ word) * 1099511628211ULL;
  }
  return hash;
}

/// A checksum as files write it: 16 hexadecimal digits.
inline std::string checksum_text(uint64_t checksum) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(checksum));
  return text;
}

}  // namespace moecod::io
