#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moecod/io/file.hpp"

namespace moecod::io {

static_assert(std::endian::native == std::endian::little, "safetensors files hold little-endian numbers");

/// One tensor of a safetensors file: row-major, little-endian, without gaps.
struct TensorRecord {
  std::string name;
  std::string dtype;  ///< as files write it: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  std::span<std::byte> bytes;
};

using Metadata = std::map<std::string, std::string>;

namespace safetensors {

/// The element types of the format, and the bytes of each; types of less than a byte are not read.
inline constexpr std::array<std::pair<std::string_view, std::size_t>, 19> dtypes{{
    {"F64", 8},     {"F32", 4},     {"F16", 2},         {"BF16", 2},        {"I64", 8},     {"I32", 4}, {"I16", 2},
    {"I8", 1},      {"U64", 8},     {"U32", 4},         {"U16", 2},         {"U8", 1},      {"BOOL", 1}, {"C64", 8},
    {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"F8_E8M0", 1},
}};

/// The reference implementation's bound on the header: a larger length is a damaged file.
inline constexpr uint64_t max_header_bytes = 100'000'000;

/// Bytes of one element, 0 for a type that is not known.
inline std::size_t element_size(std::string_view dtype) {
  for (const auto& [name, size] : dtypes)
    if (name == dtype) return size;
  return 0;
}

/// Bytes of a tensor. Errors: std::runtime_error for an unknown type, a negative size, or more than 2^63 bytes.
inline uint64_t tensor_bytes(std::string_view dtype, std::span<const int64_t> shape) {
  uint64_t total = element_size(dtype);
  if (total == 0) throw std::runtime_error("has dtype '" + std::string(dtype) + "', which is not supported");
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  for (const int64_t size : shape) {
    if (size < 0) throw std::runtime_error("has a negative size in its shape");
    if (!empty && __builtin_mul_overflow(total, static_cast<uint64_t>(size), &total)) total = UINT64_MAX;
    if (total > INT64_MAX) throw std::runtime_error("has a shape of more than 2^63 bytes");
  }
  return empty ? 0 : total;
}

}  // namespace safetensors

/// Reads a safetensors file: an 8-byte header length, a JSON header, the data.
///
/// The data stays in the file and is read as it is touched; the mapping lives as long as a copy of `mapping()`.
/// As in the format's reference implementation the tensors must tile the data: no overlap, no hole, nothing after the
/// last. Data need not be aligned to its element size.
/// Errors: std::runtime_error naming the file and what is wrong with it, whatever the bytes are.
/// Source: https://huggingface.co/docs/safetensors, format.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path) : mapping_(std::make_shared<MappedFile>(path)) {
    try {
      parse(mapping_->bytes());
    } catch (const std::exception& error) {
      throw std::runtime_error(path.string() + " is not a valid safetensors file: " + error.what());
    }
  }

  /// In the order of their data.
  const std::vector<TensorRecord>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  const std::shared_ptr<MappedFile>& mapping() const { return mapping_; }

 private:
  using Json = nlohmann::json;

  void parse(std::span<std::byte> file) {
    uint64_t length = 0;
    if (file.size() < sizeof(length)) throw std::runtime_error("shorter than the 8 bytes of the header length");
    std::memcpy(&length, file.data(), sizeof(length));
    if (length > safetensors::max_header_bytes)
      throw std::runtime_error("a header of " + std::to_string(length) + " bytes is over the limit of " +
                               std::to_string(safetensors::max_header_bytes));
    if (length > file.size() - sizeof(length))
      throw std::runtime_error("the header needs " + std::to_string(length) + " bytes, the file has " +
                               std::to_string(file.size() - sizeof(length)) + " after the length");
    const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof(length), length);
    const Json header = parse_header(text);
    const std::span<std::byte> data = file.subspan(sizeof(length) + length);
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__") {
        read_metadata(value);
        continue;
      }
      try {
        tensors_.push_back(read_tensor(name, value, data));
      } catch (const std::exception& error) {
        throw std::runtime_error("tensor '" + name + "' " + error.what());
      }
    }
    check_tiling(data);
  }

  /// JSON with the strictness that the format asks for: one object, no key twice, no deep nesting.
  static Json parse_header(std::string_view text) {
    if (text.empty() || text.front() != '{') throw std::runtime_error("the header does not start with '{'");
    if (text.find('\0') != std::string_view::npos) throw std::runtime_error("the header holds a zero byte");
    std::set<std::string> outer, inner;
    const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
      using Event = Json::parse_event_t;
      if ((event == Event::object_start || event == Event::array_start) && depth > 2)
        throw std::runtime_error("the header is nested too deeply");
      if (event == Event::object_start) inner.clear();
      if (event == Event::key) {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!(depth == 1 ? outer : inner).insert(key).second)
          throw std::runtime_error("the key '" + key + "' appears twice in the header");
      }
      return true;
    };
    try {
      return Json::parse(text.begin(), text.end(), check);
    } catch (const Json::exception& error) {
      throw std::runtime_error(std::string("the header is not JSON: ") + error.what());
    }
  }

  void read_metadata(const Json& value) {
    if (!value.is_object()) throw std::runtime_error("__metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) throw std::runtime_error("__metadata__ entry '" + key + "' is not a string");
      metadata_[key] = text.get<std::string>();
    }
  }

  static TensorRecord read_tensor(const std::string& name, const Json& value, std::span<std::byte> data) {
    if (!value.is_object()) throw std::runtime_error("is not described by an object");
    for (const auto& [key, ignored] : value.items())
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        throw std::runtime_error("has the unknown field '" + key + "'");
    const auto is_sizes = [](const Json& list) {
      return list.is_array() && std::all_of(list.begin(), list.end(), [](const Json& item) {
               return item.is_number_unsigned() && item.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
             });
    };
    TensorRecord out{name, {}, {}, {}};
    if (!value.contains("dtype") || !value["dtype"].is_string()) throw std::runtime_error("has no dtype");
    if (!value.contains("shape") || !is_sizes(value["shape"]))
      throw std::runtime_error("has no shape that is a list of sizes of at least 0");
    if (!value.contains("data_offsets") || !is_sizes(value["data_offsets"]) || value["data_offsets"].size() != 2)
      throw std::runtime_error("has no data_offsets that are two positions");
    out.dtype = value["dtype"].get<std::string>();
    out.shape = value["shape"].get<std::vector<int64_t>>();
    const auto begin = value["data_offsets"][0].get<uint64_t>(), end = value["data_offsets"][1].get<uint64_t>();
    if (begin > end || end > data.size())
      throw std::runtime_error("lies at [" + std::to_string(begin) + ", " + std::to_string(end) + ") of " +
                               std::to_string(data.size()) + " bytes of data");
    const uint64_t expected = safetensors::tensor_bytes(out.dtype, out.shape);
    if (expected != end - begin)
      throw std::runtime_error("has " + std::to_string(end - begin) + " bytes where its dtype and shape need " +
                               std::to_string(expected));
    out.bytes = data.subspan(begin, end - begin);
    const auto is_no_bool = [](std::byte value) { return value > std::byte{1}; };
    if (out.dtype == "BOOL" && std::any_of(out.bytes.begin(), out.bytes.end(), is_no_bool))
      throw std::runtime_error("has a BOOL that is neither 0 nor 1");
    return out;
  }

  void check_tiling(std::span<std::byte> data) {
    const auto begin = [&](const TensorRecord& tensor) { return tensor.bytes.data() - data.data(); };
    std::sort(tensors_.begin(), tensors_.end(), [&](const TensorRecord& a, const TensorRecord& b) {
      return std::pair(begin(a), a.bytes.size()) < std::pair(begin(b), b.bytes.size());
    });
    std::size_t next = 0;
    for (const TensorRecord& tensor : tensors_) {
      const auto at = static_cast<std::size_t>(begin(tensor));
      if (at < next) throw std::runtime_error("tensor '" + tensor.name + "' overlaps the one before it");
      if (at > next) throw std::runtime_error("there is a hole in the data before tensor '" + tensor.name + "'");
      next = at + tensor.bytes.size();
    }
    if (next != data.size())
      throw std::runtime_error(std::to_string(data.size() - next) + " bytes follow the last tensor");
  }

  std::shared_ptr<MappedFile> mapping_;
  std::vector<TensorRecord> tensors_;
  Metadata metadata_;
};

/// Writes a safetensors file piece by piece: the header when it is made, then the bytes of the tensors in their order.
/// The file appears whole, or not at all (AtomicFile).
/// Errors: std::runtime_error naming the file, for a name given twice, the name __metadata__, a text that is not UTF-8,
/// a type or shape that the format has not, another number of bytes than shapes and types need, or what the system
/// refuses; the old file then stays.
class SafetensorsWriter {
 public:
  /// Names, types and shapes of `tensors`; their bytes are not looked at.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorRecord>& tensors,
                    const Metadata& metadata = {})
      : path_(path), file_(path) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::set<std::string> names{"__metadata__"};
    uint64_t offset = 0;
    for (const TensorRecord& tensor : tensors) {
      if (!names.insert(tensor.name).second) fail("the name '" + tensor.name + "' is reserved or given twice");
      try {
        left_ = safetensors::tensor_bytes(tensor.dtype, tensor.shape);
      } catch (const std::runtime_error& error) {
        fail("tensor '" + tensor.name + "' " + error.what());
      }
      header[tensor.name] = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + left_}}};
      offset += left_;
    }
    left_ = offset;
    std::string text;
    try {
      text = header.dump();
    } catch (const nlohmann::json::exception& error) {
      fail(std::string("a name or a metadata text is not UTF-8: ") + error.what());
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > safetensors::max_header_bytes) fail("the header is over the format's limit");
    const uint64_t length = text.size();
    file_.write(std::as_bytes(std::span(&length, 1)));
    file_.write(text);
  }

  void write(std::span<const std::byte> bytes) {
    if (bytes.size() > left_) fail("more bytes than its shapes and types need");
    file_.write(bytes);
    left_ -= bytes.size();
  }

  /// Puts the file in its place; nothing may be written after it.
  void commit() {
    if (left_ > 0) fail(std::to_string(left_) + " bytes fewer than its shapes and types need");
    file_.commit();
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw std::runtime_error("cannot write " + path_.string() + ": " + reason);
  }

  std::filesystem::path path_;
  AtomicFile file_;
  uint64_t left_ = 0;
};

/// Writes a safetensors file in one step. The data is sorted by element size, largest first, then as given, so every
/// tensor is aligned.
/// Errors: as SafetensorsWriter, and for bytes that do not fit dtype and shape.
inline void write_safetensors(const std::filesystem::path& path, std::vector<TensorRecord> tensors,
                              const Metadata& metadata = {}) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorRecord& a, const TensorRecord& b) {
    return safetensors::element_size(a.dtype) > safetensors::element_size(b.dtype);
  });
  SafetensorsWriter file(path, tensors, metadata);
  for (const TensorRecord& tensor : tensors) {
    const uint64_t expected = safetensors::tensor_bytes(tensor.dtype, tensor.shape);
    if (expected != tensor.bytes.size())
      throw std::runtime_error("cannot write " + path.string() + ": tensor '" + tensor.name + "' has " +
                               std::to_string(tensor.bytes.size()) + " bytes where its dtype and shape need " +
                               std::to_string(expected));
    file.write(tensor.bytes);
  }
  file.commit();
}

}  // namespace moecod::io
