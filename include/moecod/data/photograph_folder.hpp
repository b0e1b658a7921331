#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/augment_geometry.hpp"
#include "moecod/data/packed.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/io/image.hpp"
#include "moecod/io/image_file.hpp"

namespace moecod::data {

/// What a folder of pictures gave: the photographs in order of their names, and why the other files were left out.
struct PhotographFolder {
  std::vector<Photograph> photographs;
  std::vector<std::string> skipped;  // "file: reason"
};

struct PhotographOptions {
  int64_t longest_side = 1024;   // larger pictures are shrunk to it; pixels
  int64_t shortest_side = 256;   // smaller pictures are left out; pixels, before shrinking
  double textured_share = 0.25;  // pictures with less of their area textured are left out (logos, gradients); 0..1
};

namespace detail {

/// `Name_1920x1080` and `Name-1920x1080` are `Name` at another size.
inline std::string name_without_size(std::string stem) {
  std::size_t end = stem.size();
  const auto digits_before = [&stem](std::size_t from) {
    while (from > 0 && std::isdigit(static_cast<unsigned char>(stem[from - 1]))) --from;
    return from;
  };
  const std::size_t height = digits_before(end);
  if (height == end || height == 0 || stem[height - 1] != 'x') return stem;
  const std::size_t width = digits_before(height - 1);
  if (width == height - 1 || width < 2 || (stem[width - 1] != '_' && stem[width - 1] != '-')) return stem;
  return stem.substr(0, width - 1);
}

/// The share of 16 x 16 tiles whose grey values have a standard deviation above 2.5.
inline double textured_share(const Image& image) {
  constexpr int64_t kTile = 16;
  const Image gray = to_gray(image);
  int64_t tiles = 0;
  int64_t textured = 0;
  for (int64_t top = 0; top + kTile <= gray.height; top += kTile) {
    for (int64_t left = 0; left + kTile <= gray.width; left += kTile) {
      int64_t sum = 0;
      int64_t squares = 0;
      for (int64_t y = top; y < top + kTile; ++y) {
        for (int64_t x = left; x < left + kTile; ++x) {
          const int64_t value = gray.at(y, x);
          sum += value;
          squares += value * value;
        }
      }
      const double mean = static_cast<double>(sum) / (kTile * kTile);
      textured += static_cast<double>(squares) / (kTile * kTile) - mean * mean > 2.5 * 2.5;
      ++tiles;
    }
  }
  return tiles == 0 ? 0.0 : static_cast<double>(textured) / static_cast<double>(tiles);
}

}  // namespace detail

/// A packed data set (data/packed.hpp) of photographs without objects: the largest centred square of each.
class PhotographsToPack {
 public:
  explicit PhotographsToPack(std::vector<Photograph> photographs) : photographs_(std::move(photographs)) {}

  int64_t size() const { return static_cast<int64_t>(photographs_.size()); }
  Sample sample(int64_t, int64_t index) const {
    const Photograph& photograph = photographs_[static_cast<std::size_t>(index)];
    const int64_t side = std::min(photograph.height(), photograph.width());
    return {centre_cropped(photograph.image(), side, side), Image(side, side, 1), -1, photograph.name()};
  }

 private:
  std::vector<Photograph> photographs_;
};

/// Reads photographs from folders, which are searched with all their subfolders, and from single files, in order of
/// their names: the path below the folder given, or the file's own name; and first, as they are, from packed data sets
/// (NAME.safetensors; needs no OpenCV). Left out, and said so: files that cannot be read, pictures that are too small or
/// mostly flat, and further sizes of one that was kept.
/// Errors: std::runtime_error if a path does not exist.
inline PhotographFolder read_photographs(const std::vector<std::filesystem::path>& places,
                                         const PhotographOptions& options = {}) {
  namespace fs = std::filesystem;
  PhotographFolder out;
  std::vector<std::pair<std::string, fs::path>> files;
  for (const fs::path& place : places) {
    if (place.extension() == ".safetensors" && fs::is_regular_file(place)) {
      const Packed packed(place);
      for (int64_t i = 0; i < packed.size(); ++i) {
        Sample sample = packed.sample(0, i);
        out.photographs.emplace_back(std::move(sample.name), std::move(sample.image));
      }
      continue;
    }
    if (fs::is_regular_file(place)) {
      files.emplace_back(place.filename().string(), place);
      continue;
    }
    if (!fs::is_directory(place)) throw std::runtime_error("photographs not found: " + place.string());
    for (const auto& entry : fs::recursive_directory_iterator(place)) {
      if (entry.is_regular_file() && io::is_image_path(entry.path())) {
        files.emplace_back(fs::relative(entry.path(), place).generic_string(), entry.path());
      }
    }
  }
  std::sort(files.begin(), files.end());

  std::set<std::string> kept;
  for (const auto& [name, path] : files) {
    const std::string key = (path.parent_path() / detail::name_without_size(path.stem().string())).string();
    if (kept.contains(key)) {
      out.skipped.push_back(name + ": another size of a picture already read");
      continue;
    }
    try {
      Image image = io::read_rgb(path);
      if (std::min(image.height, image.width) < options.shortest_side) {
        out.skipped.push_back(name + ": smaller than " + std::to_string(options.shortest_side) + " pixels");
        continue;
      }
      const int64_t longest = std::max(image.height, image.width);
      if (longest > options.longest_side) {
        image = resize(image, std::max<int64_t>(16, image.height * options.longest_side / longest),
                       std::max<int64_t>(16, image.width * options.longest_side / longest));
      }
      if (detail::textured_share(image) < options.textured_share) {
        out.skipped.push_back(name + ": mostly flat");
        continue;
      }
      out.photographs.emplace_back(name, std::move(image));
      kept.insert(key);
    } catch (const std::runtime_error& error) {
      out.skipped.push_back(name + ": " + error.what());
    }
  }
  return out;
}

}  // namespace moecod::data
