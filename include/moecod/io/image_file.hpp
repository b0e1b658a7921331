#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/io/file.hpp"
#include "moecod/io/image.hpp"

#ifdef MOECOD_WITH_OPENCV
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#endif

/// Image files behind one header. With MOECOD_WITH_OPENCV every format that OpenCV knows; without it binary netpbm
/// (P5 grey, P6 RGB, 8 bits) only. The macro must be the same in all translation units of a program: the build sets
/// it, sources never do.
///
///   read_rgb(path)   -> Image [H, W, 3]; alpha is dropped, grey repeated, the EXIF orientation of photographs ignored
///                       (so that an image and its mask keep the same frame)
///   read_gray(path)  -> Image [H, W, 1]; colour becomes luma
///   write_image(path, image): the format follows the file's ending; JPEG has quality 95; the file appears whole or
///                       not at all
///
/// Errors: std::runtime_error naming the file: missing, not an image, truncated, a format that this build cannot read.
namespace moecod::io {

/// The endings that `read_rgb` and `read_gray` can read in this build.
inline bool is_image_path(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
#ifdef MOECOD_WITH_OPENCV
  for (const char* known : {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}) {
    if (ending == known) return true;
  }
#endif
  return ending == ".ppm" || ending == ".pgm";
}

/// The ending of the lossless format that `write_image` prefers for a picture of 1 or 3 channels.
inline std::string lossless_ending([[maybe_unused]] int64_t channels) {
#ifdef MOECOD_WITH_OPENCV
  return ".png";
#else
  return channels == 3 ? ".ppm" : ".pgm";
#endif
}

namespace detail {

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file || std::filesystem::is_directory(path)) throw std::runtime_error("cannot open image file " + path.string());
  std::vector<uint8_t> bytes(static_cast<std::size_t>(file.tellg()));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot read image file " + path.string());
  return bytes;
}

#ifdef MOECOD_WITH_OPENCV

/// OpenCV's own threads would compete with the loader's workers.
inline void use_one_opencv_thread() {
  static const bool done = (cv::setNumThreads(0), true);
  static_cast<void>(done);
}

inline Image decode(const std::filesystem::path& path, bool color) {
  use_one_opencv_thread();
  const std::vector<uint8_t> bytes = read_bytes(path);
  cv::Mat decoded;
  try {
    if (!bytes.empty()) {
      decoded = cv::imdecode(bytes, (color ? cv::IMREAD_COLOR : cv::IMREAD_GRAYSCALE) | cv::IMREAD_IGNORE_ORIENTATION);
    }
  } catch (const cv::Exception& error) {
    throw std::runtime_error("cannot decode image file " + path.string() + ": " + error.what());
  }
  if (decoded.empty()) throw std::runtime_error("cannot decode image file " + path.string());
  if (color) cv::cvtColor(decoded, decoded, cv::COLOR_BGR2RGB);
  Image image(decoded.rows, decoded.cols, color ? 3 : 1);
  for (int y = 0; y < decoded.rows; ++y) {
    std::copy_n(decoded.ptr<uint8_t>(y), image.width * image.channels, image.row(y));
  }
  return image;
}

inline std::vector<uint8_t> encode(const std::filesystem::path& path, const Image& image) {
  use_one_opencv_thread();
  const cv::Mat view(static_cast<int>(image.height), static_cast<int>(image.width),
                     image.channels == 3 ? CV_8UC3 : CV_8UC1, const_cast<uint8_t*>(image.pixels.data()));
  cv::Mat stored;
  if (image.channels == 3) {
    cv::cvtColor(view, stored, cv::COLOR_RGB2BGR);
  } else {
    stored = view;
  }
  std::vector<uint8_t> bytes;
  try {
    std::vector<int> settings;
    const std::string ending = path.extension().string();
    if (ending == ".jpg" || ending == ".jpeg") settings = {cv::IMWRITE_JPEG_QUALITY, 95};
    if (cv::imencode(ending, stored, bytes, settings)) return bytes;
  } catch (const cv::Exception& error) {
    throw std::runtime_error("cannot encode image file " + path.string() + ": " + error.what());
  }
  throw std::runtime_error("cannot encode image file " + path.string());
}

#else

/// The next whitespace-separated number of a netpbm header; '#' starts a comment up to the end of its line.
inline int64_t header_number(const std::vector<uint8_t>& bytes, std::size_t& position, const std::string& path) {
  while (position < bytes.size() && (std::isspace(bytes[position]) || bytes[position] == '#')) {
    if (bytes[position] == '#') {
      while (position < bytes.size() && bytes[position] != '\n') ++position;
    } else {
      ++position;
    }
  }
  int64_t value = 0;
  const std::size_t start = position;
  while (position < bytes.size() && std::isdigit(bytes[position]) && value < (int64_t{1} << 24)) {
    value = value * 10 + (bytes[position++] - '0');
  }
  if (position == start) throw std::runtime_error("bad netpbm header in " + path);
  return value;
}

inline Image decode(const std::filesystem::path& path, bool color) {
  const std::vector<uint8_t> bytes = read_bytes(path);
  if (bytes.size() < 3 || bytes[0] != 'P' || (bytes[1] != '5' && bytes[1] != '6')) {
    throw std::runtime_error("cannot read " + path.string() +
                             ": this build has no OpenCV and reads binary netpbm (P5, P6) only; "
                             "build with MOECOD_WITH_OPENCV for other formats");
  }
  std::size_t position = 2;
  const int64_t width = header_number(bytes, position, path.string());
  const int64_t height = header_number(bytes, position, path.string());
  const int64_t maximum = header_number(bytes, position, path.string());
  ++position;  // the single whitespace before the pixels
  const int64_t channels = bytes[1] == '6' ? 3 : 1;
  if (width <= 0 || height <= 0 || width > (1 << 20) || height > (1 << 20) || maximum != 255) {
    throw std::runtime_error("bad netpbm header in " + path.string() + ": expected positive sizes and maximum 255");
  }
  const auto size = static_cast<std::size_t>(width * height * channels);
  if (position > bytes.size() || bytes.size() - position < size) {
    throw std::runtime_error("image file " + path.string() + " is truncated");
  }
  Image image;
  image.height = height;
  image.width = width;
  image.channels = channels;
  image.pixels.assign(bytes.begin() + static_cast<std::ptrdiff_t>(position),
                      bytes.begin() + static_cast<std::ptrdiff_t>(position + size));
  if (!color) return to_gray(std::move(image));
  if (channels == 3) return image;
  Image rgb(height, width, 3);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) std::fill_n(rgb.pixels.begin() + 3 * i, 3, image.pixels[i]);
  return rgb;
}

inline std::vector<uint8_t> encode(const std::filesystem::path& path, const Image& image) {
  const std::string ending = path.extension().string();
  if (ending != (image.channels == 3 ? ".ppm" : ".pgm")) {
    throw std::runtime_error("cannot write " + path.string() +
                             ": this build has no OpenCV and writes .ppm (RGB) and .pgm (grey) only; "
                             "build with MOECOD_WITH_OPENCV for other formats");
  }
  const std::string header = std::string(image.channels == 3 ? "P6" : "P5") + "\n" + std::to_string(image.width) + " " +
                             std::to_string(image.height) + "\n255\n";
  std::vector<uint8_t> bytes(header.begin(), header.end());
  bytes.insert(bytes.end(), image.pixels.begin(), image.pixels.end());
  return bytes;
}

#endif

}  // namespace detail

inline Image read_rgb(const std::filesystem::path& path) { return detail::decode(path, true); }

inline Image read_gray(const std::filesystem::path& path) { return detail::decode(path, false); }

inline void write_image(const std::filesystem::path& path, const Image& image) {
  if (image.empty() || (image.channels != 1 && image.channels != 3)) {
    throw std::invalid_argument("write_image: expected a non-empty image with 1 or 3 channels, got " +
                                std::to_string(image.height) + " x " + std::to_string(image.width) + " x " +
                                std::to_string(image.channels) + " for " + path.string());
  }
  write_atomically(path, detail::encode(path, image));
}

}  // namespace moecod::io
