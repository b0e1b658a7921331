#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moecod/data/generator.hpp"
#include "moecod/data/photograph.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/sample.hpp"
#include "moecod/data/split.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/image_file.hpp"

namespace moecod::data {

struct DatasetOptions {
  int64_t train = 400;         // pictures
  int64_t validation = 60;
  int64_t test = 200;
  Generator::Options picture;  // size, difficulty, regimes, seed
  int64_t threads = 2;
  std::function<void(int64_t done, int64_t total)> progress;  // told after each picture, one call at a time
};

namespace detail {

/// The part of a photograph's name that fits between the dashes of a COD10K name.
inline std::string word_of(const Photograph& photograph) {
  std::string word;
  for (const char c : std::filesystem::path(photograph.name()).stem().string()) {
    if (std::isalnum(static_cast<unsigned char>(c))) word.push_back(c);
  }
  return word.empty() ? "Photograph" : word;
}

inline uint64_t fingerprint(const Photograph& photograph) {
  uint64_t hash = 0;
  for (const uint8_t value : photograph.image().pixels) hash = (hash ^ value) * 0x100000001B3ULL + 1;
  return hash;
}

/// One part of a data set and the generator of its pictures.
struct DatasetPart {
  const char* name;
  const char* folder;
  const char* list;
  int64_t count;
  int64_t first;  // number of its first picture
  Generator generator;
};

/// The generator of a part, 0 training, 1 validation, 2 test: each has photographs and a stream of its own.
inline Generator part_generator(const std::vector<Photograph>& photographs, Generator::Options picture, uint64_t part) {
  picture.seed = Random{picture.seed, part}.bits();
  return Generator(photographs, picture);
}

inline nlohmann::json dataset_parameters(const PhotographSplit& split, const DatasetOptions& options,
                                         const std::string& image_ending) {
  nlohmann::json photographs;
  for (const auto& [name, part] : {std::pair{"train", &split.train}, std::pair{"validation", &split.validation},
                                   std::pair{"test", &split.test}}) {
    for (const Photograph& p : *part) photographs[name][p.name()] = fingerprint(p);
  }
  return {{"train", options.train},
          {"validation", options.validation},
          {"test", options.test},
          {"size", options.picture.size},
          {"difficulty", options.picture.difficulty},
          {"regimes", options.picture.regimes},
          {"seed", options.picture.seed},
          {"image_ending", image_ending},
          {"photographs", photographs}};
}

/// True if the folder holds the data set of these parameters. Errors: std::runtime_error if it holds anything else.
inline bool dataset_exists(const std::filesystem::path& folder, const nlohmann::json& parameters) {
  namespace fs = std::filesystem;
  if (!fs::exists(folder) || (fs::is_directory(folder) && fs::is_empty(folder))) return false;
  const fs::path labels = folder / "Info" / "regimes.json";
  nlohmann::json found;
  if (std::ifstream file(labels); file) found = nlohmann::json::parse(file, nullptr, false);
  if (!found.is_object() || !found.contains("parameters")) {
    throw std::runtime_error(folder.string() + " exists and is not a generated data set (no " + labels.string() +
                             "); choose another folder or remove it");
  }
  for (const auto& [key, value] : parameters.items()) {
    const nlohmann::json& old = found["parameters"][key];
    if (old != value) {
      const std::string change = key == "photographs" ? "" : " (" + old.dump() + ", asked " + value.dump() + ")";
      throw std::runtime_error(folder.string() + " holds a data set made with another \"" + key + "\"" + change +
                               "; choose another folder or remove it");
    }
  }
  return true;
}

/// The folder's path in full and without a slash at its end, so that a name beside it can be made of it.
inline std::filesystem::path dataset_folder(const std::filesystem::path& output) {
  const std::filesystem::path folder = std::filesystem::absolute(output).lexically_normal();
  return folder.has_filename() ? folder : folder.parent_path();
}

/// Writes the labels into a data set that is complete but for them, and gives it its name.
inline void finish_dataset(const std::filesystem::path& partial, const nlohmann::json& labels,
                           const std::filesystem::path& folder) {
  std::filesystem::create_directories(partial / "Info");
  io::write_atomically(partial / "Info" / "regimes.json", labels.dump(1) + "\n");
  if (std::filesystem::exists(folder)) std::filesystem::remove(folder);  // it was empty
  std::filesystem::rename(partial, folder);
}

}  // namespace detail

/// Writes a generated data set in COD10K's layout:
///
///   {Train,Test}/Image/NAME.jpg, {Train,Test}/GT_Object/NAME.png   (.ppm and .pgm in a build without OpenCV)
///   Info/CAM_train.txt, CAM_val.txt, CAM_test.txt                  the names of each part; validation's files are in
///                                                                  Train, its photographs are not those of training
///   Info/regimes.json                                              parameters, counts, and for each picture its
///                                                                  part, regime, photograph and generator index
///
/// with NAME = COD10K-CAM-<regime + 1>-<Regime>-<photograph>-<Photograph>-<n>. The files are the same bytes for any
/// number of threads. The folder appears when it is complete; a run cut short leaves FOLDER.partial, which the next
/// one replaces.
/// Returns false, and writes nothing, if the folder already holds this data set.
/// Errors: std::runtime_error if the folder holds something else or cannot be written; std::invalid_argument for
/// options out of range.
inline bool write_dataset(const std::filesystem::path& output, const PhotographSplit& split,
                          const DatasetOptions& options) {
  namespace fs = std::filesystem;
  const fs::path folder = detail::dataset_folder(output);
  if (options.train < 0 || options.validation < 0 || options.test < 0 || options.threads <= 0) {
    throw std::invalid_argument("write_dataset: expected train, validation, test >= 0 and threads > 0");
  }
  const bool all_formats = io::is_image_path("name.jpg");
  const std::string image_ending = all_formats ? ".jpg" : ".ppm";
  const std::string mask_ending = all_formats ? ".png" : ".pgm";
  const nlohmann::json parameters = detail::dataset_parameters(split, options, image_ending);
  if (detail::dataset_exists(folder, parameters)) return false;

  const auto generator = [&options](const std::vector<Photograph>& photographs, uint64_t part) {
    return detail::part_generator(photographs, options.picture, part);
  };
  const std::array<detail::DatasetPart, 3> parts{
      {{"train", "Train", "CAM_train.txt", options.train, 0, generator(split.train, 0)},
       {"validation", "Train", "CAM_val.txt", options.validation, options.train, generator(split.validation, 1)},
       {"test", "Test", "CAM_test.txt", options.test, options.train + options.validation, generator(split.test, 2)}}};

  const fs::path partial = folder.string() + ".partial";
  fs::remove_all(partial);
  for (const char* part : {"Train", "Test"}) {
    fs::create_directories(partial / part / "Image");
    fs::create_directories(partial / part / "GT_Object");
  }
  fs::create_directories(partial / "Info");

  struct Picture {
    std::string name;
    Regime regime;
    std::size_t photograph;
  };
  const int64_t total = options.train + options.validation + options.test;
  std::vector<Picture> pictures(static_cast<std::size_t>(total));
  const std::array<std::size_t, 3> first_photograph{0, split.train.size(),
                                                    split.train.size() + split.validation.size()};
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  int64_t done = 0;
  std::exception_ptr error;
  const auto work = [&] {
    try {
      for (int64_t n = next++; n < total; n = next++) {
        const std::size_t p = n >= parts[2].first ? 2 : n >= parts[1].first ? 1 : 0;
        const detail::DatasetPart& part = parts[p];
        const Camouflage made = part.generator(static_cast<uint64_t>(n - part.first));
        const auto regime = static_cast<std::size_t>(made.regime);
        const std::string name = "COD10K-CAM-" + std::to_string(regime + 1) + "-" + std::string(kRegimeNames[regime]) +
                                 "-" + std::to_string(first_photograph[p] + made.photograph + 1) + "-" +
                                 detail::word_of(part.generator.photographs()[made.photograph]) + "-" +
                                 std::to_string(n + 1);
        io::write_image(partial / part.folder / "Image" / (name + image_ending), made.image);
        io::write_image(partial / part.folder / "GT_Object" / (name + mask_ending), made.mask);
        pictures[static_cast<std::size_t>(n)] = {name, made.regime, made.photograph};
        const std::lock_guard lock(mutex);
        if (options.progress) options.progress(++done, total);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = total;
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int64_t i = 0; i < options.threads; ++i) threads.emplace_back(work);
  }
  if (error) std::rethrow_exception(error);

  nlohmann::json labels{{"parameters", parameters}, {"counts", nlohmann::json::object()},
                        {"pictures", nlohmann::json::array()}};
  for (const detail::DatasetPart& part : parts) {
    std::string list;
    for (const std::string_view name : kRegimeNames) labels["counts"][part.name][std::string(name)] = 0;
    for (int64_t n = part.first; n < part.first + part.count; ++n) {
      const Picture& picture = pictures[static_cast<std::size_t>(n)];
      const std::string regime(kRegimeNames[static_cast<std::size_t>(picture.regime)]);
      list += picture.name + "\n";
      labels["counts"][part.name][regime] = labels["counts"][part.name][regime].get<int64_t>() + 1;
      labels["pictures"].push_back({{"name", picture.name},
                                    {"part", part.name},
                                    {"regime", regime},
                                    {"label", static_cast<int64_t>(picture.regime)},
                                    {"photograph", part.generator.photographs()[picture.photograph].name()},
                                    {"index", n - part.first}});
    }
    io::write_atomically(partial / "Info" / part.list, list);
  }
  detail::finish_dataset(partial, labels, folder);
  return true;
}

}  // namespace moecod::data
