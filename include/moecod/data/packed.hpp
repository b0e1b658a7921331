#pragma once

#include <cstring>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moecod/data/sample.hpp"
#include "moecod/io/checksum.hpp"
#include "moecod/io/safetensors.hpp"

namespace moecod::data {

/// What a packed data set says of itself under this key of its header; a reader refuses other versions.
inline constexpr const char* packed_key = "moecod.packed";
inline constexpr const char* packed_version = "1";

/// A part of a data set in one file: pictures and masks of one size, neither to be found nor to be decoded. Written by
/// write_packed (data/pack.hpp); a safetensors file, so Python reads it in one line.
///
///     pictures [N, H, W, 4] U8: red, green, blue, and the mask, 0 or 255
///     regimes [N] I64, -1: none;  checksums [N] U64, io::checksum of each picture
///     header: moecod.packed: version, names: JSON list
///
/// The file is mapped: a picture is read from the disk when it is first asked for, and its checksum is compared each
/// time. Thread-safe. Needs neither OpenCV nor LibTorch.
/// Errors: std::runtime_error naming the file and what is wrong with it; bad_sample for a picture whose checksum differs;
/// std::out_of_range for an index that does not exist.
class Packed {
 public:
  explicit Packed(const std::filesystem::path& path) : path_(path), file_(path) {
    const auto version = file_.metadata().find(packed_key);
    if (version == file_.metadata().end()) fail("is not a packed data set (no '" + std::string(packed_key) + "' in its header)");
    if (version->second != packed_version)
      fail("is a packed data set of version " + version->second + ", expected " + packed_version + ": pack it again");
    const io::TensorRecord& pictures = tensor("pictures", "U8", 4);
    size_ = pictures.shape[0];
    height_ = pictures.shape[1];
    width_ = pictures.shape[2];
    if (pictures.shape[3] != 4 || height_ < 1 || width_ < 1) fail("has pictures of another shape than [N, H, W, 4]");
    pictures_ = pictures.bytes.data();
    regimes_ = tensor("regimes", "I64", 1, {size_}).bytes.data();
    checksums_ = tensor("checksums", "U64", 1, {size_}).bytes.data();
    const auto names = file_.metadata().find("names");
    const auto list = names == file_.metadata().end() ? nlohmann::json() : nlohmann::json::parse(names->second, nullptr, false);
    if (!list.is_array() || int64_t(list.size()) != size_) fail("has not one name a picture");
    for (const auto& name : list) {
      if (!name.is_string()) fail("has a name that is no text");
      names_.push_back(name.get<std::string>());
    }
  }

  int64_t size() const { return size_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }

  Sample sample(int64_t /*epoch*/, int64_t index) const {
    if (index < 0 || index >= size_)
      throw std::out_of_range("Packed: expected an index in 0.." + std::to_string(size_ - 1) + ", got " +
                              std::to_string(index));
    Sample out{Image(height_, width_, 3), Image(height_, width_, 1), number<int64_t>(regimes_, index),
               names_[static_cast<std::size_t>(index)]};
    const std::size_t pixels = out.mask.pixels.size();
    const std::span<const std::byte> bytes(pictures_ + static_cast<std::size_t>(index) * pixels * 4, pixels * 4);
    if (io::checksum(bytes) != number<uint64_t>(checksums_, index))
      throw bad_sample(path_.string() + ": " + out.name + ": its checksum differs, the file is damaged");
    for (std::size_t i = 0; i < pixels; ++i) {
      for (std::size_t c = 0; c < 3; ++c) out.image.pixels[3 * i + c] = static_cast<uint8_t>(bytes[4 * i + c]);
      out.mask.pixels[i] = static_cast<uint8_t>(bytes[4 * i + 3]);
    }
    return out;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { throw std::runtime_error(path_.string() + " " + reason); }

  const io::TensorRecord& tensor(const std::string& name, const std::string& dtype, std::size_t dimensions,
                                 const std::vector<int64_t>& shape = {}) const {
    for (const io::TensorRecord& record : file_.tensors()) {
      if (record.name != name) continue;
      if (record.dtype != dtype || record.shape.size() != dimensions || (!shape.empty() && record.shape != shape))
        fail("has '" + name + "' of another type or shape than a packed data set");
      return record;
    }
    fail("has no '" + name + "'");
  }

  template <class T>
  static T number(const std::byte* values, int64_t index) {
    T out;
    std::memcpy(&out, values + index * int64_t(sizeof(T)), sizeof(T));
    return out;
  }

  std::filesystem::path path_;
  io::SafetensorsFile file_;
  int64_t size_ = 0, height_ = 0, width_ = 0;
  const std::byte *pictures_ = nullptr, *regimes_ = nullptr, *checksums_ = nullptr;
  std::vector<std::string> names_;
};

static_assert(source<Packed>);

}  // namespace moecod::data
