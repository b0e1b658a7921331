// Scores predicted maps, or a trained model, against ground truth, with the figures of PySODMetrics.
//
//   evaluate --pred predictions --gt TestDataset --json scores.json
//   evaluate --pred predictions --gt TestDataset --measures all --images TestDataset
//   evaluate --checkpoint ensemble_best.safetensors --tta flip,0.75,1.25 --gt TestDataset --images TestDataset
//
// Both folders hold masks directly, or one subfolder per data set. In a folder of data sets, masks may also lie in a
// subfolder named GT, as in TestDataset/CAMO/GT, and images in one named Imgs. Files are paired by name without the
// ending.
//
// --crf --images TestDataset finishes the maps with a dense random field over their pictures first. A model's maps are
// those that predict writes.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "examples/prediction/crf_flags.hpp"
#include "examples/prediction/mask_predictor.hpp"
#include <moecod/io/file.hpp>
#include <moecod/io/image.hpp>
#include <moecod/io/image_file.hpp>
#include <moecod/metric/camouflage_context_measure.hpp>
#include <moecod/metric/evaluator.hpp>

namespace {

namespace fs = std::filesystem;
namespace metric = moecod::metric;
using metric::NamedValue;

constexpr const char* kMeasuresHelp =
    "What to compute, a comma-separated list:\n"
    "standard  S, E, F, weighted F, MAE, IoU, Dice, BER\n"
    "counts    precision, recall, specificity, false positive rate, accuracy, kappa; every count over the data set\n"
    "si        size-invariant MAE and counts\n"
    "msiou     multi-scale IoU of the edges\n"
    "hce       human correction effort\n"
    "cm        context measure\n"
    "ccm       camouflage context measure; needs --images\n"
    "all       all of these, ccm with --images only";

struct Options {
  fs::path predictions;  // empty where a model makes them
  moecod::examples::PredictionFlags model;
  fs::path truths;
  fs::path images;
  fs::path json;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  std::vector<std::string> measures{"standard"};
  bool resize = false;
  moecod::examples::CrfFlags crf;

  bool names(const std::string& measure) const {
    return std::find(measures.begin(), measures.end(), measure) != measures.end();
  }
  bool wants(const std::string& measure) const {
    return names(measure) || (names("all") && (measure != "ccm" || !images.empty()));
  }
  /// Whether images stand beside the maps when these are finished or scored.
  bool scores_images() const { return crf.on || wants("ccm"); }
  bool reads_images() const { return predictions.empty() || scores_images(); }
};

struct Case {
  std::string name;
  fs::path prediction;  // if there are files of them
  fs::path truth;
  fs::path image;       // if something reads it
};

struct DataSet {
  std::string name;
  std::vector<Case> cases;
};

/// The mean of the camouflage context measure, which reads the image beside the maps.
class CamouflageContextEvaluator {
 public:
  void add(const metric::ImageStatistics& image, const uint8_t* rgb) {
    mean_.add(metric::CamouflageContextMeasure::of(image, rgb));
  }
  void merge(const CamouflageContextEvaluator& other) { mean_.merge(other.mean_); }
  std::vector<NamedValue> results() const { return {{metric::CamouflageContextMeasure::name, mean_.value()}}; }

 private:
  metric::ExactMean mean_;
};

/// The measures asked for; the others are empty and cost nothing.
class Measures {
 public:
  explicit Measures(const Options& options) {
    const auto use = [&](const char* name, auto& evaluator) {
      if (options.wants(name)) {
        evaluator.emplace();
      }
    };
    use("standard", standard_);
    use("counts", counts_);
    use("si", size_invariant_);
    use("msiou", multi_scale_iou_);
    use("hce", correction_effort_);
    use("cm", context_);
    use("ccm", camouflage_context_);
  }

  /// One image; rgb are its pixels, read by the camouflage context measure only.
  void add(const metric::MapPair& pair, const uint8_t* rgb) {
    const metric::ImageStatistics image(pair);
    each(
        [&](auto& evaluator) {
          if constexpr (requires { evaluator->add(image, rgb); }) {
            evaluator->add(image, rgb);
          } else {
            evaluator->add(image);
          }
        },
        *this);
    ++images_;
  }

  void merge(const Measures& other) {
    each([](auto& evaluator, const auto& theirs) { evaluator->merge(*theirs); }, *this, other);
    images_ += other.images_;
  }

  int64_t images() const { return images_; }

  /// The figures, one list per measure.
  std::vector<std::vector<NamedValue>> results() const {
    std::vector<std::vector<NamedValue>> lists;
    each([&](const auto& evaluator) { lists.push_back(evaluator->results()); }, *this);
    return lists;
  }

 private:
  /// Calls visit with each evaluator in use, the same one of all the objects.
  template <class Visit, class First, class... Rest>
  static void each(const Visit& visit, First& first, Rest&... rest) {
    const auto call = [&](auto member) {
      if (first.*member) {
        visit(first.*member, rest.*member...);
      }
    };
    call(&Measures::standard_);
    call(&Measures::counts_);
    call(&Measures::size_invariant_);
    call(&Measures::multi_scale_iou_);
    call(&Measures::correction_effort_);
    call(&Measures::context_);
    call(&Measures::camouflage_context_);
  }

  std::optional<metric::Evaluator> standard_;
  std::optional<metric::CountsEvaluator> counts_;
  std::optional<metric::SizeInvariantEvaluator> size_invariant_;
  std::optional<metric::MultiScaleIouEvaluator> multi_scale_iou_;
  std::optional<metric::HumanCorrectionEffortEvaluator> correction_effort_;
  std::optional<metric::ContextEvaluator> context_;
  std::optional<CamouflageContextEvaluator> camouflage_context_;
  int64_t images_ = 0;
};

struct Score {
  std::string name;
  int64_t images = 0;
  int64_t resized = 0;
  std::vector<std::vector<NamedValue>> metrics;  // one list per measure
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

/// Masks or images of a folder by name without the ending, in the order of names.
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

/// The folder, or that of its subfolders NAME/Imgs, NAME and Imgs which is there.
fs::path image_folder(const fs::path& folder, const std::string& name) {
  for (const fs::path& inner : {fs::path(name) / "Imgs", fs::path(name), fs::path("Imgs")}) {
    if (fs::is_directory(folder / inner)) {
      return folder / inner;
    }
  }
  return folder;
}

DataSet pair_up(std::string name, const fs::path& prediction_folder, const fs::path& truth_folder,
                const Options& options, Problems& problems) {
  DataSet data{std::move(name), {}};
  const bool with_predictions = !options.predictions.empty();
  const auto predictions = with_predictions ? masks_in(prediction_folder) : std::map<std::string, fs::path>();
  const bool with_images = options.reads_images();
  const fs::path images_folder = with_images ? image_folder(options.images, data.name) : fs::path();
  if (with_images && fs::equivalent(images_folder, truth_folder)) {
    throw std::runtime_error("--images: " + images_folder.string() +
                             " holds the ground truths themselves; give the folder of their images, and theirs with --gt");
  }
  const auto images = with_images ? masks_in(images_folder) : decltype(predictions){};
  for (const auto& [stem, truth] : masks_in(truth_folder)) {
    const auto prediction = predictions.find(stem);
    const auto image = images.find(stem);
    if (with_predictions && prediction == predictions.end()) {
      problems.add(data.name + "/" + stem + ": no prediction in " + prediction_folder.string());
    } else if (with_images && image == images.end()) {
      problems.add(data.name + "/" + stem + ": no image in " + images_folder.string());
    } else {
      data.cases.push_back({stem, with_predictions ? prediction->second : fs::path(), truth,
                            with_images ? image->second : fs::path()});
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
    data_sets.push_back(pair_up(name, options.predictions, options.truths, options, problems));
  } else {
    for (const fs::path& folder : subfolders_of(options.truths)) {
      const std::string name = folder.filename().string();
      const fs::path truths = with_masks(folder, "GT");
      if (masks_in(truths).empty()) {
        continue;
      }
      if (!options.predictions.empty() && !fs::is_directory(options.predictions / name)) {
        problems.add(name + ": no folder of predictions " + (options.predictions / name).string());
        continue;
      }
      data_sets.push_back(pair_up(name, options.predictions / name, truths, options, problems));
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
  Measures measures;
  int64_t resized = 0;
  std::vector<std::string> problems{};
};

/// `prediction` is the model's where there is no file of it.
void evaluate_case(const Case& one, moecod::Image prediction, const Options& options, Part& part) {
  if (!one.prediction.empty()) {
    prediction = moecod::io::read_gray(one.prediction);
  }
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
  moecod::Image image;
  if (options.scores_images()) {
    image = moecod::io::read_rgb(one.image);
    if (image.height != truth.height || image.width != truth.width) {
      throw std::runtime_error("image is " + std::to_string(image.height) + " x " + std::to_string(image.width) +
                               ", ground truth " + std::to_string(truth.height) + " x " +
                               std::to_string(truth.width) + " (height x width)");
    }
  }
  if (options.crf.on) {
    prediction = options.crf.finish(image, std::move(prediction));
  }
  part.measures.add({prediction.pixels.data(), truth.pixels.data(), truth.height, truth.width}, image.pixels.data());
}

/// The model's maps of these cases; an empty one, and a problem, where an image cannot be read.
std::vector<moecod::Image> predict(moecod::examples::MaskPredictor& model, const std::vector<Case>& cases, Part& whole) {
  std::vector<moecod::Image> images;
  std::vector<std::size_t> places;
  std::vector<moecod::Image> maps(cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    try {
      images.push_back(moecod::io::read_rgb(cases[i].image));
      places.push_back(i);
    } catch (const std::exception& error) {
      whole.problems.push_back(cases[i].name + ": " + error.what());
    }
  }
  std::vector<moecod::examples::Prediction> predictions = model(images);
  for (std::size_t i = 0; i < places.size(); ++i) {
    maps[places[i]] = std::move(predictions[i].mask);
  }
  return maps;
}

/// Scores cases, `maps` being theirs where a model makes them, in as many threads as asked for.
void evaluate_cases(const std::vector<Case>& cases, std::vector<moecod::Image> maps, const Options& options,
                    Part& whole) {
  const auto count = std::min(static_cast<std::size_t>(options.threads), cases.size());
  std::vector<Part> parts(count, Part{Measures(options)});
  std::atomic<std::size_t> next{0};
  const auto work = [&](Part& part) {
    for (std::size_t index = next++; index < cases.size(); index = next++) {
      if (!maps.empty() && maps[index].empty()) {
        continue;
      }
      try {
        evaluate_case(cases[index], maps.empty() ? moecod::Image() : std::move(maps[index]), options, part);
      } catch (const std::exception& error) {
        part.problems.push_back(cases[index].name + ": " + error.what());
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (Part& part : parts) {
      threads.emplace_back(work, std::ref(part));
    }
  }
  for (const Part& part : parts) {
    whole.measures.merge(part.measures);
    whole.resized += part.resized;
    whole.problems.insert(whole.problems.end(), part.problems.begin(), part.problems.end());
  }
}

/// `model` is null where there are files of predictions; its maps are made and scored batch by batch.
Score evaluate_data_set(const DataSet& data, const Options& options, moecod::examples::MaskPredictor* model) {
  Part whole{Measures(options)};
  if (model == nullptr) {
    evaluate_cases(data.cases, {}, options, whole);
  } else {
    const auto batch_size = static_cast<std::size_t>(options.model.batch_size);
    for (std::size_t begin = 0; begin < data.cases.size(); begin += batch_size) {
      const std::size_t end = std::min(data.cases.size(), begin + batch_size);
      const std::vector<Case> cases(data.cases.begin() + static_cast<std::ptrdiff_t>(begin),
                                    data.cases.begin() + static_cast<std::ptrdiff_t>(end));
      evaluate_cases(cases, predict(*model, cases, whole), options, whole);
    }
  }
  std::sort(whole.problems.begin(), whole.problems.end());
  Problems problems;
  for (const std::string& problem : whole.problems) {
    problems.add(data.name + "/" + problem);
  }
  problems.throw_if_any();
  return {data.name, whole.measures.images(), whole.resized, whole.measures.results()};
}

/// Metric and regime of a name such as iou_max, si_iou_overall_max or si_mae.
std::pair<std::string, std::string> heading_of(const std::string& name) {
  const std::size_t prefix = name.starts_with("si_") ? 3 : 0;
  const std::size_t split = name.find('_', prefix);
  return {name.substr(0, split), split == std::string::npos ? "" : name.substr(split + 1)};
}

/// Two lines of headings (metric, regime) and a row per data set, for one measure.
void print_table(const std::vector<Score>& scores, std::size_t measure, int name_width) {
  std::string metrics;
  std::string regimes;
  std::string previous;
  std::vector<int> widths;
  for (const NamedValue& metric : scores.front().metrics[measure]) {
    const auto [heading, regime] = heading_of(metric.name);
    const std::string shown = heading == previous ? "" : heading;
    const auto width = static_cast<int>(std::max({std::size_t{9}, shown.size(), regime.size()}));
    const auto right_aligned = [&](const std::string& text) {
      return std::string(static_cast<std::size_t>(width) + 1 - text.size(), ' ') + text;
    };
    metrics += right_aligned(shown);
    regimes += right_aligned(regime);
    widths.push_back(width);
    previous = heading;
  }
  std::printf("%-*s %7s%s\n", name_width, "", "", metrics.c_str());
  std::printf("%-*s %7s%s\n", name_width, "data set", "images", regimes.c_str());
  for (const Score& score : scores) {
    std::printf("%-*s %7lld", name_width, score.name.c_str(), static_cast<long long>(score.images));
    for (std::size_t column = 0; column < widths.size(); ++column) {
      std::printf(" %*.4f", widths[column], score.metrics[measure][column].value);
    }
    std::printf("\n");
  }
}

void print_tables(const std::vector<Score>& scores) {
  int name_width = 8;
  for (const Score& score : scores) {
    name_width = std::max(name_width, static_cast<int>(score.name.size()));
  }
  for (std::size_t measure = 0; measure < scores.front().metrics.size(); ++measure) {
    if (measure > 0) {
      std::printf("\n");
    }
    print_table(scores, measure, name_width);
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
    for (const std::vector<NamedValue>& list : score.metrics) {
      for (const NamedValue& metric : list) {
        entry[metric.name] = metric.value;
      }
    }
  }
  moecod::io::write_atomically(path, nlohmann::ordered_json{{"datasets", std::move(data_sets)}}.dump(2) + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Scores predicted maps against ground truth, with the figures of PySODMetrics 1.6.2."};
  CLI::Option* predictions =
      app.add_option("--pred", options.predictions, "Folder of predictions, or of one subfolder per data set")
          ->check(CLI::ExistingDirectory);
  CLI::Option* checkpoint = moecod::examples::add_prediction_flags(app, options.model)->excludes(predictions);
  app.add_option("--gt", options.truths, "Folder of ground truths, or of one subfolder per data set")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--json", options.json, "Write all figures to this file");
  app.add_option("--threads", options.threads, "Images evaluated at the same time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--measures", options.measures, kMeasuresHelp)
      ->delimiter(',')
      ->check(CLI::IsMember({"standard", "counts", "si", "msiou", "hce", "cm", "ccm", "all"}))
      ->capture_default_str();
  app.add_option("--images", options.images, "Folder of the images, laid out as --gt or --pred; for ccm, --crf and --checkpoint")
      ->check(CLI::ExistingDirectory);
  app.add_flag("--resize", options.resize, "Resize predictions whose size differs from the ground truth's");
  moecod::examples::add_crf_flags(app, options.crf);
  CLI11_PARSE(app, argc, argv);

  try {
    if (options.predictions.empty() && checkpoint->empty()) {
      throw std::invalid_argument("what to score is missing: --pred, a folder of maps, or --checkpoint, a model");
    }
    if (!checkpoint->empty() && options.images.empty()) {
      throw std::invalid_argument("--checkpoint reads the images: give their folder with --images");
    }
    if (options.crf.on && options.images.empty()) {
      throw std::invalid_argument("--crf reads the images: give their folder with --images");
    }
    if (options.names("ccm") && options.images.empty()) {
      throw std::invalid_argument("--measures ccm reads the images: give their folder with --images");
    }
    std::vector<Score> scores;
    const std::vector<DataSet> data_sets = find_data_sets(options);
    std::unique_ptr<moecod::examples::MaskPredictor> model;
    if (!checkpoint->empty()) {
      model = std::make_unique<moecod::examples::MaskPredictor>(options.model);
    }
    for (const DataSet& data : data_sets) {
      scores.push_back(evaluate_data_set(data, options, model.get()));
    }
    print_tables(scores);
    if (!options.json.empty()) {
      write_json(options.json, scores);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "evaluate: %s\n", error.what());
    return 1;
  }
  return 0;
}
