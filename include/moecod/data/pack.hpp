#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moecod/data/packed.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/io/checksum.hpp"
#include "moecod/io/image.hpp"
#include "moecod/io/safetensors.hpp"

namespace moecod::data {

struct PackOptions {
  int64_t height = 448, width = 448;  ///< pixels
  int64_t threads = 2;                ///< that read and resize; the file is the same for any number
  std::function<void(int64_t done, int64_t total)> progress;  ///< of both passes, told after each block of pictures
};

namespace detail {

/// A picture as a packed file holds it; without bytes where the source could not read it.
struct PackedPicture {
  std::string name;
  int64_t regime = -1;
  std::vector<std::byte> bytes;  // [H, W, 4]
  std::string problem;
};

template <source Source>
PackedPicture pack_picture(const Source& source, int64_t index, int64_t height, int64_t width) {
  PackedPicture out;
  try {
    const Sample sample = source.sample(0, index);
    const Image image = resize(sample.image, height, width), mask = binarize(resize(sample.mask, height, width));
    out.name = sample.name;
    out.regime = sample.regime;
    out.bytes.resize(mask.pixels.size() * 4);
    for (std::size_t i = 0; i < mask.pixels.size(); ++i) {
      for (std::size_t c = 0; c < 3; ++c) out.bytes[4 * i + c] = std::byte{image.pixels[3 * i + c]};
      out.bytes[4 * i + 3] = std::byte{mask.pixels[i]};
    }
  } catch (const bad_sample& error) {
    out.problem = error.what();
  }
  return out;
}

/// Calls take(index, picture) for each of `indices`, in order. Several threads make the pictures, a block at a time;
/// `before` and `after` are the pictures of other passes, for the progress.
template <source Source, class Take>
void for_each_picture(const Source& source, const std::vector<int64_t>& indices, const PackOptions& options,
                      int64_t before, int64_t after, Take&& take) {
  constexpr std::size_t block = 64;
  for (std::size_t begin = 0; begin < indices.size(); begin += block) {
    const std::size_t count = std::min(block, indices.size() - begin);
    std::vector<PackedPicture> pictures(count);
    std::atomic<std::size_t> next{0};
    std::vector<std::future<void>> workers;
    for (int64_t t = 0; t < options.threads; ++t)
      workers.push_back(std::async(std::launch::async, [&] {
        for (std::size_t i = next++; i < count; i = next++)
          pictures[i] = pack_picture(source, indices[begin + i], options.height, options.width);
      }));
    for (auto& worker : workers) worker.get();
    for (std::size_t i = 0; i < count; ++i) take(indices[begin + i], pictures[i]);
    if (options.progress)
      options.progress(before + static_cast<int64_t>(begin + count), before + static_cast<int64_t>(indices.size()) + after);
  }
}

}  // namespace detail

/// Writes epoch 0 of a source as a packed data set (data/packed.hpp): each picture is resized once, its mask is cut at
/// half after that. The source is read twice, since the file begins with what is only known at its end; in memory are 64
/// pictures at a time.
///
/// Returns what was wrong with pictures that cannot be read; they are left out.
/// Errors: std::invalid_argument for a size or a number of threads < 1; std::runtime_error when no picture can be read
/// or one changes between the passes; what the source or the disk gives. The file then is not written.
template <source Source>
std::vector<std::string> write_packed(const std::filesystem::path& path, const Source& source,
                                      const PackOptions& options = {}) {
  if (options.height < 1 || options.width < 1 || options.threads < 1)
    throw std::invalid_argument("write_packed: height, width and threads must be at least 1, got " +
                                std::to_string(options.height) + ", " + std::to_string(options.width) + " and " +
                                std::to_string(options.threads));
  std::vector<int64_t> all(static_cast<std::size_t>(source.size())), good, regimes;
  std::iota(all.begin(), all.end(), 0);
  std::vector<uint64_t> checksums;
  std::vector<std::string> problems;
  nlohmann::json names = nlohmann::json::array();
  const auto total = static_cast<int64_t>(all.size());
  detail::for_each_picture(source, all, options, 0, total, [&](int64_t index, const detail::PackedPicture& picture) {
    if (picture.bytes.empty()) {
      problems.push_back(picture.problem);
      return;
    }
    good.push_back(index);
    regimes.push_back(picture.regime);
    checksums.push_back(io::checksum(picture.bytes));
    names.push_back(picture.name);
  });
  if (good.empty())
    throw std::runtime_error("write_packed: no picture can be read, " + path.string() + " is not written" +
                             (problems.empty() ? "" : "; the first problem: " + problems.front()));
  const auto count = static_cast<int64_t>(good.size());
  io::SafetensorsWriter file(path,
                             {{"regimes", "I64", {count}, {}},
                              {"checksums", "U64", {count}, {}},
                              {"pictures", "U8", {count, options.height, options.width, 4}, {}}},
                             {{packed_key, packed_version}, {"names", names.dump()}});
  file.write(std::as_bytes(std::span(regimes)));
  file.write(std::as_bytes(std::span(checksums)));
  std::size_t place = 0;
  detail::for_each_picture(source, good, options, total, 0, [&](int64_t, const detail::PackedPicture& picture) {
    if (io::checksum(picture.bytes) != checksums[place])
      throw std::runtime_error("write_packed: " + std::string(names[place]) + " changed while it was packed");
    ++place;
    file.write(picture.bytes);
  });
  file.commit();
  return problems;
}

}  // namespace moecod::data
