// Packs a data set: pictures and masks of one size in one file a part, which training maps into memory instead of
// finding, decoding and resizing them. Programs read the folder with --data-root as any other data set.
//
//   pack_dataset --data-root COD10K-v3 --output packed --size 448
//   pack_dataset --photos backgrounds --output packed --size 1024      photographs for make_dataset and --fresh

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "moecod/data/folder.hpp"
#include "moecod/data/hold_out.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/data/pack.hpp"
#include "moecod/data/photograph_folder.hpp"
#include "moecod/io/file.hpp"
#include "moecod/train/progress.hpp"

namespace {

namespace data = moecod::data;
namespace fs = std::filesystem;

struct Options {
  std::string root, output;
  std::vector<fs::path> photos;
  std::vector<std::string> parts{"train", "test"};
  int64_t size = 448, seed = 0, max_bad = 10;
  int64_t threads = std::max(1U, std::thread::hardware_concurrency());
  double validation_share = 0.05;
};

void pack(const data::Records& records, data::Split split, const std::string& part, const Options& options) {
  const fs::path path = data::packed_file(options.output, split);
  moecod::train::Progress progress(part, 2 * static_cast<int64_t>(records.records.size()));
  const data::PackOptions pack_options{.height = options.size,
                                       .width = options.size,
                                       .threads = options.threads,
                                       .progress = [&](int64_t done, int64_t) { progress.update(done); }};
  const auto problems = data::write_packed(path, data::Folder(records, {.max_bad = options.max_bad}), pack_options);
  progress.finish(path.string() + ", " + std::to_string(records.records.size() - problems.size()) + " pictures");
}

/// Takes along what a generated data set says of itself: --fresh and inspect ask which photographs it was made from.
void copy_labels(const Options& options) {
  const fs::path path = fs::path(options.root) / "Info" / "regimes.json";
  std::ifstream file(path);
  if (!file) return;
  nlohmann::json labels = nlohmann::json::parse(file, nullptr, false);
  if (!labels.is_object()) throw std::runtime_error("broken label file " + path.string());
  labels["parameters"]["image_ending"] = ".safetensors";
  labels["parameters"]["size"] = options.size;
  fs::create_directories(fs::path(options.output) / "Info");
  moecod::io::write_atomically(fs::path(options.output) / "Info" / "regimes.json", labels.dump(1) + "\n");
}

void pack_photographs(const Options& options) {
  data::PhotographFolder found = data::read_photographs(options.photos);
  for (const std::string& skipped : found.skipped) std::cout << "left out " << skipped << '\n';
  const fs::path path = fs::path(options.output) / "photographs.safetensors";
  fs::create_directories(options.output);
  const data::PhotographsToPack source(std::move(found.photographs));
  data::write_packed(path, source,
                     {.height = options.size, .width = options.size, .threads = options.threads, .progress = {}});
  std::cout << path.string() << ", " << source.size() << " photographs" << std::endl;
}

void run(const Options& options) {
  if (options.root.empty() == options.photos.empty())
    throw std::runtime_error("expected --data-root, or --photos, and not both");
  if (!options.photos.empty()) return pack_photographs(options);
  const std::set<std::string> parts(options.parts.begin(), options.parts.end());
  if (parts.size() > 1 && fs::is_directory(fs::path(options.root) / "Imgs"))
    throw std::runtime_error("--data-root: " + options.root + " has one folder of pictures for every part: say with --parts "
                             "whether it is to be train or test");
  fs::create_directories(options.output);
  if (parts.contains("train")) {
    const auto [training, validation] =
        data::open_training(options.root, options.validation_share, static_cast<uint64_t>(options.seed));
    pack(training, data::Split::Train, "training part", options);
    pack(validation, data::Split::Validation, "validation part", options);
  }
  if (parts.contains("test")) pack(data::open(options.root, data::Split::Test), data::Split::Test, "test part", options);
  copy_labels(options);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Packs a data set into one file a part, for training without image files.");
  Options options;
  app.add_option("--data-root", options.root, "data set: COD10K-v3, CAMO, or Imgs and GT");
  app.add_option("--photos", options.photos, "in its place: photographs, each cut to its largest centred square");
  app.add_option("--output", options.output, "folder to write")->required();
  app.add_option("--size", options.size, "side of the pictures in pixels, the --img-size of the training")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--parts", options.parts, "train (with the validation part), test, or both")
      ->check(CLI::IsMember({"train", "test"}))
      ->capture_default_str();
  app.add_option("--validation-share", options.validation_share,
                 "share of the training set to validate on, where the data set has no such part")
      ->check(CLI::Range(0.001, 0.5))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the choice of that share")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--max-bad", options.max_bad, "unreadable pairs that are tolerated in a part")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--threads", options.threads, "the files are the same for any number")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::cerr << "pack_dataset: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
