// Scores predicted maps against ground truth, with the figures of PySODMetrics.
//
//   evaluate --pred predictions --gt TestDataset --json scores.json
//
// Both folders hold masks directly, or one subfolder per data set. In a folder of data sets, masks may also lie in a
// subfolder named GT, as in TestDataset/CAMO/GT. Masks are paired by name without the ending.
//
// --crf --images TestDataset finishes the maps with a dense random field over their pictures first. These lie as the
// ground truths do, or in a data set's subfolder Imgs.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "examples/crf_flags.hpp"
#include <moecod/io/file.hpp>
#include <moecod/io/image.hpp>
#include <moecod/io/image_file.hpp>
#include <moecod/metric/evaluator.hpp>

namespace {

namespace fs = std::filesystem;
using moecod::metric::Evaluator;
using moecod::metric::NamedValue;

struct Options {
  fs::path predictions;
  fs::path truths;
  fs::path images;  // of the pictures, for the random field
  fs::path json;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  bool resize = false;
  moecod::examples::CrfFlags crf;
};

struct Case {
  std::string name;
  fs::path prediction;
  fs::path truth;
  fs::path image;  // empty where no pictures are asked for
};

struct DataSet {
  std::string name;
  std::vector<Case> cases;
};

struct Score {
  std::string name;
  int64_t images = 0;
  int64_t resized = 0;
  std::vector<NamedValue> metrics;
};

/// Collects what is wrong with the input, so that one run names every bad file.
class Problems {
 public:
  void add(std::string problem) { problems_.push_back(std::move(problem)); }
  void add(const std::vector<std::string>& problems) {
    problems_.insert(problems_.end(), problems.begin(), problems.end());
  }

  void throw_if_any() const {
    if (problems_.empty()) {
      return;
    }
    constexpr std::size_t kShown = 20;
    std::string text = std::to_string(problems_.size()) + " problem(s) with the input:";
    for (std::size_t i = 0; i < std::min(kShown, problems_.size()); ++i) {
      text += "\n  " + problems_[i];
    }
    if (problems_.size() > kShown) {
      text += "\n  ... and " + std::to_string(problems_.size() - kShown) + " more";
    }
    throw std::runtime_error(text);
  }

 private:
  std::vector<std::string> problems_;
};

/// Masks of a folder by name without the ending, in the order of names.
std::map<std::string, fs::path> masks_in(const fs::path& folder) {
  std::map<std::string, fs::path> masks;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || !moecod::io::is_image_path(entry.path())) {
      continue;
    }
    const auto [other, is_new] = masks.emplace(entry.path().stem().string(), entry.path());
    if (!is_new) {
      throw std::runtime_error("two files for one mask: " + other->second.string() + " and " + entry.path().string());
    }
  }
  return masks;
}

/// The folder itself if it holds pictures, else its subfolder of that name if there is one.
fs::path with_masks(const fs::path& folder, const char* subfolder) {
  return masks_in(folder).empty() && fs::is_directory(folder / subfolder) ? folder / subfolder : folder;
}

std::vector<fs::path> subfolders_of(const fs::path& folder) {
  std::vector<fs::path> folders;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) {
      folders.push_back(entry.path());
    }
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

/// Without a folder of images the cases have none.
DataSet pair_up(std::string name, const fs::path& prediction_folder, const fs::path& truth_folder,
                const fs::path& image_folder, Problems& problems) {
  DataSet data{std::move(name), {}};
  const auto predictions = masks_in(prediction_folder);
  const auto images = image_folder.empty() ? decltype(predictions)() : masks_in(image_folder);
  for (const auto& [stem, truth] : masks_in(truth_folder)) {
    const auto prediction = predictions.find(stem);
    const auto image = images.find(stem);
    if (prediction == predictions.end()) {
      problems.add(data.name + "/" + stem + ": no prediction in " + prediction_folder.string());
    } else if (!image_folder.empty() && image == images.end()) {
      problems.add(data.name + "/" + stem + ": no picture in " + image_folder.string());
    } else {
      data.cases.push_back({stem, prediction->second, truth, image_folder.empty() ? fs::path() : image->second});
    }
  }
  return data;
}

std::vector<DataSet> find_data_sets(const Options& options) {
  std::vector<DataSet> data_sets;
  Problems problems;
  if (!masks_in(options.truths).empty()) {
    const fs::path folder = fs::canonical(options.truths);
    const bool is_gt = folder.filename() == "GT" && folder.has_parent_path();
    const std::string name = (is_gt ? folder.parent_path() : folder).filename().string();
    data_sets.push_back(pair_up(name, options.predictions, options.truths, options.images, problems));
  } else {
    for (const fs::path& folder : subfolders_of(options.truths)) {
      const std::string name = folder.filename().string();
      const fs::path truths = with_masks(folder, "GT");
      if (masks_in(truths).empty()) {
        continue;
      }
      if (!fs::is_directory(options.predictions / name)) {
        problems.add(name + ": no folder of predictions " + (options.predictions / name).string());
        continue;
      }
      fs::path images = options.images;
      if (!images.empty()) {
        images /= name;
        if (!fs::is_directory(images)) {
          problems.add(name + ": no folder of pictures " + images.string());
          continue;
        }
        images = with_masks(images, "Imgs");
      }
      data_sets.push_back(pair_up(name, options.predictions / name, truths, images, problems));
    }
  }
  problems.throw_if_any();
  if (data_sets.empty()) {
    throw std::runtime_error("no masks in " + options.truths.string() + ", nor in its subfolders");
  }
  return data_sets;
}

/// What one thread gathers; the parts are merged at the end. The figures do not depend on which thread took which case.
struct Part {
  Evaluator evaluator;
  int64_t resized = 0;
  std::vector<std::string> problems;
};

void evaluate_case(const Case& one, const Options& options, Part& part) {
  moecod::Image prediction = moecod::io::read_gray(one.prediction);
  const moecod::Image truth = moecod::io::read_gray(one.truth);
  if (prediction.height != truth.height || prediction.width != truth.width) {
    if (!options.resize) {
      throw std::runtime_error("prediction is " + std::to_string(prediction.height) + " x " +
                               std::to_string(prediction.width) + ", ground truth " + std::to_string(truth.height) +
                               " x " + std::to_string(truth.width) + " (height x width); --resize accepts this");
    }
    prediction = moecod::resize(prediction, truth.height, truth.width);
    ++part.resized;
  }
  if (options.crf.on) {
    prediction = options.crf.finish(moecod::io::read_rgb(one.image), std::move(prediction));
  }
  part.evaluator.add({prediction.pixels.data(), truth.pixels.data(), truth.height, truth.width});
}

Score evaluate_data_set(const DataSet& data, const Options& options) {
  const auto count = std::min(static_cast<std::size_t>(options.threads), data.cases.size());
  std::vector<Part> parts(count);
  std::atomic<std::size_t> next{0};
  const auto work = [&](Part& part) {
    for (std::size_t index = next++; index < data.cases.size(); index = next++) {
      const Case& one = data.cases[index];
      try {
        evaluate_case(one, options, part);
      } catch (const std::exception& error) {
        part.problems.push_back(data.name + "/" + one.name + ": " + error.what());
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (Part& part : parts) {
      threads.emplace_back(work, std::ref(part));
    }
  }
  Part whole;
  for (const Part& part : parts) {
    whole.evaluator.merge(part.evaluator);
    whole.resized += part.resized;
    whole.problems.insert(whole.problems.end(), part.problems.begin(), part.problems.end());
  }
  std::sort(whole.problems.begin(), whole.problems.end());
  Problems problems;
  problems.add(whole.problems);
  problems.throw_if_any();
  return {data.name, whole.evaluator.images(), whole.resized, whole.evaluator.results()};
}

/// Two lines of headings (metric, regime) and a row per data set.
void print_table(const std::vector<Score>& scores) {
  constexpr int kColumn = 9;
  int name_width = 8;
  for (const Score& score : scores) {
    name_width = std::max(name_width, static_cast<int>(score.name.size()));
  }
  std::string metrics;
  std::string regimes;
  std::string previous;
  for (const NamedValue& metric : scores.front().metrics) {
    const std::size_t split = metric.name.find('_');
    const std::string heading = metric.name.substr(0, split);
    const std::string regime = split == std::string::npos ? "" : metric.name.substr(split + 1);
    const auto right_aligned = [&](const std::string& text) {
      return std::string(kColumn + 1 - std::min<std::size_t>(kColumn, text.size()), ' ') + text;
    };
    metrics += right_aligned(heading == previous ? "" : heading);
    regimes += right_aligned(regime);
    previous = heading;
  }
  std::printf("%-*s %7s%s\n", name_width, "", "", metrics.c_str());
  std::printf("%-*s %7s%s\n", name_width, "data set", "images", regimes.c_str());
  for (const Score& score : scores) {
    std::printf("%-*s %7lld", name_width, score.name.c_str(), static_cast<long long>(score.images));
    for (const NamedValue& metric : score.metrics) {
      std::printf(" %*.4f", kColumn, metric.value);
    }
    std::printf("\n");
  }
  for (const Score& score : scores) {
    if (score.resized > 0) {
      std::printf("%s: %lld of %lld predictions resized to the size of their ground truth\n", score.name.c_str(),
                  static_cast<long long>(score.resized), static_cast<long long>(score.images));
    }
  }
}

void write_json(const fs::path& path, const std::vector<Score>& scores) {
  nlohmann::ordered_json data_sets = nlohmann::ordered_json::object();
  for (const Score& score : scores) {
    nlohmann::ordered_json& entry = data_sets[score.name];
    entry["images"] = score.images;
    for (const NamedValue& metric : score.metrics) {
      entry[metric.name] = metric.value;
    }
  }
  moecod::io::write_atomically(path, nlohmann::ordered_json{{"datasets", std::move(data_sets)}}.dump(2) + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Scores predicted maps against ground truth, with the figures of PySODMetrics 1.6.2."};
  app.add_option("--pred", options.predictions, "Folder of predictions, or of one subfolder per data set")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--gt", options.truths, "Folder of ground truths, or of one subfolder per data set")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--json", options.json, "Write all figures to this file");
  app.add_option("--threads", options.threads, "Images evaluated at the same time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("--resize", options.resize, "Resize predictions whose size differs from the ground truth's");
  CLI::Option* crf = moecod::examples::add_crf_flags(app, options.crf);
  CLI::Option* images = app.add_option("--images", options.images,
                                       "Folder of the pictures, or of one subfolder per data set; for --crf");
  images->check(CLI::ExistingDirectory)->needs(crf);
  crf->needs(images);
  CLI11_PARSE(app, argc, argv);

  try {
    std::vector<Score> scores;
    for (const DataSet& data : find_data_sets(options)) {
      scores.push_back(evaluate_data_set(data, options));
    }
    print_table(scores);
    if (!options.json.empty()) {
      write_json(options.json, scores);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "evaluate: %s\n", error.what());
    return 1;
  }
  return 0;
}
