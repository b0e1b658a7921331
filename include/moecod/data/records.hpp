#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moecod/data/sample.hpp"
#include "moecod/io/image_file.hpp"

namespace moecod::data {

/// One pair of files of a data set.
struct Record {
  std::string name;  // the image's file name without its ending
  std::filesystem::path image;
  std::filesystem::path mask;
  int64_t regime = -1;  // for data sets written by make_dataset, else -1
};

/// The pairs of a data set in order of their names, and the images that have no mask.
struct Records {
  std::string layout;  // "COD10K", "CAMO" or "folders"
  std::vector<Record> records;
  std::vector<std::string> problems;  // "name: what is wrong"
};

enum class Split { Train, Validation, Test };

struct RecordOptions {
  bool non_camouflaged = false;   // COD10K: also the NonCAM images
  bool exclude_overlaps = false;  // COD10K test set: leave out the pictures known to be in the training set too
};

namespace detail {

namespace fs = std::filesystem;

/// Pictures of COD10K's test set that are also in its training set.
inline constexpr std::array<std::string_view, 2> kCod10kOverlaps{"COD10K-CAM-1-Aquatic-3-Crab-32",
                                                                 "COD10K-CAM-2-Terrestrial-23-Cat-1506"};

/// The regime that a name COD10K-CAM-<n>-<Regime>-... carries, or -1.
inline int64_t regime_in_name(std::string_view name) {
  for (int field = 0; field < 3; ++field) {
    const std::size_t dash = name.find('-');
    if (dash == std::string_view::npos) return -1;
    name.remove_prefix(dash + 1);
  }
  return regime_of(name.substr(0, name.find('-')));
}

/// The image files of a folder by their names without endings.
inline std::map<std::string, fs::path> images_in(const fs::path& folder) {
  std::map<std::string, fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && io::is_image_path(entry.path())) out[entry.path().stem().string()] = entry.path();
  }
  return out;
}

/// The names listed in a file of COD10K's Info folder: the first word of each line, without an image ending.
inline std::vector<std::string> listed_names(const fs::path& list) {
  std::ifstream file(list);
  if (!file) throw std::runtime_error("cannot read " + list.string());
  std::vector<std::string> names;
  std::string line;
  while (std::getline(file, line)) {
    const auto space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
    const auto first = std::find_if_not(line.begin(), line.end(), space);
    const std::string word(first, std::find_if(first, line.end(), space));
    if (word.empty()) continue;
    const fs::path path(word);
    names.push_back(io::is_image_path(path) || path.extension() == ".jpg" ? path.stem().string() : word);
  }
  return names;
}

inline void pair_up(Records& out, const std::vector<std::string>& names, const std::map<std::string, fs::path>& images,
                    const std::map<std::string, fs::path>& masks) {
  for (const std::string& name : names) {
    const auto image = images.find(name);
    const auto mask = masks.find(name);
    if (image == images.end() || mask == masks.end()) {
      out.problems.push_back(name + (image == images.end() ? ": image missing" : ": mask missing"));
      continue;
    }
    out.records.push_back({name, image->second, mask->second, regime_in_name(name)});
  }
}

inline std::vector<std::string> keys(const std::map<std::string, fs::path>& files) {
  std::vector<std::string> names;
  for (const auto& [name, path] : files) names.push_back(name);
  return names;
}

inline Records open_cod10k(const fs::path& root, Split split, const RecordOptions& options) {
  const std::string part = split == Split::Test ? "Test" : "Train";
  const std::string list = split == Split::Test ? "test" : split == Split::Train ? "train" : "val";
  const auto images = images_in(root / part / "Image");
  const auto masks = images_in(root / part / "GT_Object");
  std::set<std::string> names;
  for (const std::string kind : {"CAM", "NonCAM"}) {
    if (kind == "NonCAM" && !options.non_camouflaged) continue;
    const fs::path path = root / "Info" / (kind + "_" + list + ".txt");
    if (fs::exists(path)) {
      for (std::string& name : listed_names(path)) names.insert(std::move(name));
    } else if (split == Split::Validation) {
      if (kind == "CAM") {
        throw std::runtime_error("data set " + root.string() + " lists no validation part: no " + path.string());
      }
    } else {
      for (const auto& [name, file] : images) {
        if (name.starts_with("COD10K-" + kind + "-")) names.insert(name);
      }
    }
  }
  if (options.exclude_overlaps && split == Split::Test) {
    for (const std::string_view name : kCod10kOverlaps) names.erase(std::string(name));
  }
  Records out{"COD10K", {}, {}};
  pair_up(out, {names.begin(), names.end()}, images, masks);
  return out;
}

}  // namespace detail

/// Finds the pairs of a data set by its layout:
///
///   COD10K   ROOT/{Train,Test}/{Image,GT_Object}, with the lists ROOT/Info/{CAM,NonCAM}_{train,val,test}.txt where
///            they exist; camouflaged images only, unless asked; a validation part is listed apart from the training
///            part and has its files in Train
///   CAMO     ROOT/Images/{Train,Test} and ROOT/GT
///   folders  ROOT/{Imgs,GT}, as CHAMELEON and NC4K come, for any split; or, below a ROOT with
///            TrainDataset/{Imgs,GT} and TestDataset/<NAME>/{Imgs,GT}, the former for training and all of the latter
///            for testing (give ROOT/TestDataset/<NAME> for one of them)
///
/// Errors: std::runtime_error if no layout fits, naming those tried, or if a part has no pair.
inline Records open(const std::filesystem::path& root, Split split, const RecordOptions& options = {}) {
  namespace fs = std::filesystem;
  const std::string part = split == Split::Test ? "Test" : "Train";
  Records out{"folders", {}, {}};
  const auto add_folder = [&out](const fs::path& folder) {
    const auto images = detail::images_in(folder / "Imgs");
    detail::pair_up(out, detail::keys(images), images, detail::images_in(folder / "GT"));
  };
  if (fs::is_directory(root / part / "Image") && fs::is_directory(root / part / "GT_Object")) {
    out = detail::open_cod10k(root, split, options);
  } else if (split != Split::Validation && fs::is_directory(root / "Images" / part) && fs::is_directory(root / "GT")) {
    out.layout = "CAMO";
    const auto images = detail::images_in(root / "Images" / part);
    detail::pair_up(out, detail::keys(images), images, detail::images_in(root / "GT"));
  } else if (fs::is_directory(root / "Imgs") && fs::is_directory(root / "GT")) {
    add_folder(root);
  } else if (split == Split::Train && fs::is_directory(root / "TrainDataset" / "Imgs")) {
    add_folder(root / "TrainDataset");
  } else if (split == Split::Test && fs::is_directory(root / "TestDataset")) {
    std::set<fs::path> folders;
    for (const auto& entry : fs::directory_iterator(root / "TestDataset")) {
      if (fs::is_directory(entry.path() / "Imgs")) folders.insert(entry.path());
    }
    for (const fs::path& folder : folders) add_folder(folder);
  } else {
    const std::string what = split == Split::Validation ? "validation" : split == Split::Test ? "test" : "training";
    throw std::runtime_error("no " + what + " data found in " + root.string() + ": expected " + part +
                             "/{Image,GT_Object} (COD10K), Images/" + part +
                             " with GT (CAMO), {Imgs,GT}, TrainDataset or TestDataset");
  }
  if (out.records.empty()) {
    throw std::runtime_error("data set " + root.string() + " (" + out.layout + " layout) has no image with a mask" +
                             (out.problems.empty() ? "" : "; the first problem: " + out.problems.front()));
  }
  return out;
}

}  // namespace moecod::data
