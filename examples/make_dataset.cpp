// Writes a data set of camouflaged objects with known masks and regimes, in COD10K's layout or packed, from photographs or,
// without any, from procedural textures. Nothing is written if the folder already holds the same data set.
//
//   make_dataset --output camo --photos /usr/share/backgrounds/mate/nature --train 800 --test 240 --size 96

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "moecod/data/photograph_folder.hpp"
#include "moecod/data/procedural.hpp"
#include "moecod/data/split.hpp"
#include "moecod/data/write_dataset.hpp"
#include "moecod/data/write_packed_dataset.hpp"

namespace data = moecod::data;

int main(int argc, char** argv) {
  CLI::App app("Writes a data set of generated camouflage in COD10K's layout.");
  std::string output;
  std::vector<std::filesystem::path> photos;
  int64_t procedural = 24;
  bool packed = false;
  data::DatasetOptions options;
  data::SplitOptions split_options;
  options.threads = std::max(1U, std::thread::hardware_concurrency());
  app.add_option("--output", output, "folder to write")->required();
  app.add_option("--photos", photos,
                 "folders of photographs, searched with their subfolders, single files, or packed ones (.safetensors)");
  app.add_flag("--packed", packed, "write one file a part, to be mapped by training, in place of files of pictures");
  app.add_option("--procedural", procedural, "textures to make when no photographs are given")->capture_default_str();
  app.add_option("--train", options.train, "training pictures")->capture_default_str();
  app.add_option("--validation", options.validation, "validation pictures")->capture_default_str();
  app.add_option("--test", options.test, "test pictures")->capture_default_str();
  app.add_option("--validation-photos", split_options.validation, "photographs kept for validation, at least 2")
      ->capture_default_str();
  app.add_option("--test-photos", split_options.test, "photographs kept for testing, at least 3")
      ->capture_default_str();
  app.add_option("--size", options.picture.size, "side of the pictures in pixels, at least 32")->capture_default_str();
  app.add_option("--difficulty", options.picture.difficulty, "0 easy .. 1 hidden")->capture_default_str();
  app.add_option("--regimes", options.picture.regimes,
                 "shares of cluttered, clear, multi-scale and ambiguous pictures")
      ->capture_default_str();
  app.add_option("--seed", options.picture.seed, "of the pictures and of the split of the photographs")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "the files are the same for any number")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  try {
    std::vector<data::Photograph> photographs;
    if (photos.empty()) {
      photographs = data::procedural_photographs(procedural, options.picture.seed);
      std::cout << photographs.size() << " procedural textures" << std::endl;
    } else {
      data::PhotographFolder found = data::read_photographs(photos);
      for (const std::string& skipped : found.skipped) std::cout << "left out " << skipped << '\n';
      photographs = std::move(found.photographs);
      std::cout << photographs.size() << " photographs" << std::endl;
    }
    split_options.seed = options.picture.seed;
    const data::PhotographSplit split = data::split_photographs(std::move(photographs), split_options);
    const auto list = [](const char* part, int64_t pictures, const std::vector<data::Photograph>& from) {
      std::cout << part << ": " << pictures << " pictures of";
      for (const data::Photograph& photograph : from) std::cout << ' ' << photograph.name();
      std::cout << '\n';
    };
    list("train", options.train, split.train);
    list("validation", options.validation, split.validation);
    list("test", options.test, split.test);

    const bool terminal = ::isatty(STDOUT_FILENO) != 0;
    options.progress = [terminal](int64_t done, int64_t total) {
      static int64_t shown = 0;  // tenths
      const bool tenth = done * 10 / total != shown;
      shown = done * 10 / total;
      if (terminal) {
        std::cout << '\r' << done << " / " << total << (done == total ? "\n" : "") << std::flush;
      } else if (tenth) {
        std::cout << done << " / " << total << std::endl;
      }
    };
    const bool written = packed ? data::write_packed_dataset(output, split, options)
                                : data::write_dataset(output, split, options);
    std::cout << output << (written ? ": written\n" : ": already there, nothing to do\n");
    return 0;
  } catch (const std::exception& error) {
    std::cout << std::flush;
    std::cerr << "make_dataset: " << error.what() << '\n';
    return 1;
  }
}
