// Finds the hidden objects in pictures: writes a mask of each at the picture's size, and who was asked.
//
//   predict --checkpoint checkpoints_moe/ensemble_best.safetensors --input photos --output masks --routing routing.json
//
// Several checkpoints answer as one (--checkpoint A B), each can look at more views of a picture (--tta flip,0.75,1.25),
// and the maps can be drawn to the picture's edges (--crf). What that brings stands in docs/post.md.

#include <CLI/CLI.hpp>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "examples/prediction/crf_flags.hpp"
#include "examples/prediction/mask_predictor.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/image_file.hpp"
#include "moecod/train/progress.hpp"

namespace {

using namespace moecod;
namespace fs = std::filesystem;

struct Options {
  std::string input, routing;
  fs::path output;
  examples::PredictionFlags prediction;
  examples::CrfFlags crf;
};

/// The picture, or all pictures of the folder; no two of one name.
std::vector<fs::path> pictures_at(const fs::path& place) {
  if (fs::is_regular_file(place)) return {place};
  if (!fs::is_directory(place))
    throw std::runtime_error("--input: " + place.string() + " is neither a file nor a folder");
  std::set<fs::path> found;
  std::set<std::string> stems;
  for (const auto& entry : fs::directory_iterator(place)) {
    if (!entry.is_regular_file() || !io::is_image_path(entry.path())) continue;
    found.insert(entry.path());
    if (!stems.insert(entry.path().stem().string()).second)
      throw std::runtime_error("--input: two pictures are named " + entry.path().stem().string());
  }
  if (found.empty()) throw std::runtime_error("--input: no pictures in " + place.string());
  return {found.begin(), found.end()};
}

/// A model-level mixture decides once a picture; of a feature-level one there is a list, finest level first.
nlohmann::ordered_json decisions_json(const std::vector<examples::Decision>& levels) {
  const auto one = [](const examples::Decision& level) {
    return nlohmann::ordered_json{{"experts", level.experts}, {"weights", level.weights}};
  };
  if (levels.size() == 1) return one(levels[0]);
  nlohmann::ordered_json json;
  for (const examples::Decision& level : levels) json["levels"].push_back(one(level));
  return json;
}

/// The names of the experts and each picture's decision; of several checkpoints, a list with one such entry each.
nlohmann::ordered_json routing_json(const Options& options, const examples::MaskPredictor& predictor,
                                    const std::vector<nlohmann::ordered_json>& decisions) {
  const auto& checkpoints = options.prediction.checkpoints;
  nlohmann::ordered_json json;
  if (checkpoints.size() == 1) return {{"experts", predictor.experts(0)}, {"pictures", decisions[0]}};
  for (std::size_t m = 0; m < checkpoints.size(); ++m)
    json["checkpoints"].push_back(
        {{"checkpoint", checkpoints[m]}, {"experts", predictor.experts(m)}, {"pictures", decisions[m]}});
  return json;
}

int run(const Options& options) {
  examples::MaskPredictor predictor(options.prediction);
  const std::vector<fs::path> pictures = pictures_at(options.input);
  fs::create_directories(options.output);

  std::vector<nlohmann::ordered_json> decisions(options.prediction.checkpoints.size(), nlohmann::ordered_json::object());
  std::vector<std::string> unreadable;
  train::Progress progress("predict", int64_t(pictures.size()));
  const auto batch_size = std::size_t(options.prediction.batch_size);
  for (std::size_t begin = 0; begin < pictures.size(); begin += batch_size) {
    const std::size_t end = std::min(pictures.size(), begin + batch_size);
    std::vector<Image> images;
    std::vector<std::string> names;
    for (std::size_t i = begin; i < end; ++i) {
      try {
        images.push_back(io::read_rgb(pictures[i]));
        names.push_back(pictures[i].stem().string());
      } catch (const std::runtime_error& error) {
        unreadable.push_back(pictures[i].filename().string() + ": " + error.what());
      }
    }
    std::vector<examples::Prediction> predictions = predictor(images);
    for (std::size_t i = 0; i < images.size(); ++i) {
      io::write_image(options.output / (names[i] + io::lossless_ending(1)),
                      options.crf.finish(images[i], std::move(predictions[i].mask)));
      for (std::size_t m = 0; m < decisions.size(); ++m)
        decisions[m][names[i]] = decisions_json(predictions[i].decisions[m]);
    }
    progress.update(int64_t(end));
  }
  progress.finish();
  if (!options.routing.empty())
    io::write_atomically(options.routing, routing_json(options, predictor, decisions).dump(1) + "\n");
  for (const std::string& problem : unreadable) std::cerr << "predict: not read: " << problem << '\n';
  return unreadable.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes the masks of hidden objects in pictures, and which experts were asked.");
  Options options;
  examples::add_prediction_flags(app, options.prediction)->required();
  app.add_option("--input", options.input, "a picture or a folder of pictures")->required();
  app.add_option("--output", options.output, "folder for the masks")->required();
  app.add_option("--routing", options.routing, "JSON file for the experts chosen and their weights");
  examples::add_crf_flags(app, options.crf);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::cerr << "predict: " << error.what() << '\n';
    return 1;
  }
}
