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

#include "examples/crf_flags.hpp"
#include "examples/device.hpp"
#include "examples/loaded_model.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/image_file.hpp"
#include "moecod/io/map_image.hpp"
#include "moecod/post/ensemble.hpp"
#include "moecod/post/tta.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/progress.hpp"

namespace {

using namespace moecod;
namespace fs = std::filesystem;

std::vector<fs::path> pictures_at(const fs::path& place) {
  if (fs::is_regular_file(place)) return {place};
  TORCH_CHECK(fs::is_directory(place), "--input: ", place.string(), " is neither a file nor a folder");
  std::set<fs::path> found;
  for (const auto& entry : fs::directory_iterator(place))
    if (entry.is_regular_file() && io::is_image_path(entry.path())) found.insert(entry.path());
  TORCH_CHECK(!found.empty(), "--input: no pictures in ", place.string());
  return {found.begin(), found.end()};
}

struct Options {
  std::vector<std::string> checkpoints;
  std::string input, routing, views, device = "auto";
  fs::path output;
  int64_t size = 0, batch_size = 8;
  examples::CrfFlags crf;
};

/// One checkpoint's model, its answer for the batch at hand, and its decisions for all pictures.
struct Member {
  examples::LoadedModel model;
  examples::Asked last;
  nlohmann::ordered_json decisions = nlohmann::ordered_json::object();
};

/// The side that the models see: the one asked for, or that of the checkpoints' training.
int64_t side_of(const Options& options, const std::vector<Member>& members) {
  const int64_t size = options.size > 0 ? options.size : members.front().model.size;
  for (std::size_t m = 0; options.size == 0 && m < members.size(); ++m)
    TORCH_CHECK(members[m].model.size == size, "--checkpoint: ", options.checkpoints.front(), " was trained at ", size,
                " pixels, ", options.checkpoints[m], " at ", members[m].model.size, ": say which to use with --img-size");
  TORCH_CHECK(size % 32 == 0, "--img-size must be a multiple of 32, got ", size);
  return size;
}

/// All checkpoints as one model, each looking at all views; a member keeps its decisions for the first, which is the
/// picture as it is.
post::Ensemble ensemble_of(std::vector<Member>& members, const std::vector<post::View>& views) {
  std::vector<post::Ensemble::Model> models;
  for (Member& member : members)
    models.emplace_back(post::Augmented(
        [&member](const at::Tensor& images) {
          examples::Asked out = member.model.ask(images);
          if (!member.last.logits.defined()) member.last = out;
          return out.logits;
        },
        views));
  return post::Ensemble(std::move(models));
}

/// {"experts": [...], "weights": [...]} of one picture.
nlohmann::ordered_json decision_json(const examples::LevelDecision& level, int64_t picture) {
  nlohmann::ordered_json json;
  for (int64_t k = 0; k < level.experts.size(1); ++k) {
    json["experts"].push_back(level.experts[picture][k].item<int64_t>());
    json["weights"].push_back(level.weights[picture][k].item<double>());
  }
  return json;
}

/// A model-level mixture decides once a picture; of a feature-level one there is a list, finest level first.
void note_decisions(Member& member, const std::vector<std::string>& names) {
  for (examples::LevelDecision& level : member.last.levels)
    level = {level.experts.to(at::kCPU), level.weights.to(at::kCPU)};
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto& picture = member.decisions[names[i]];
    if (member.last.levels.size() == 1) {
      picture = decision_json(member.last.levels[0], int64_t(i));
    } else {
      for (const examples::LevelDecision& level : member.last.levels)
        picture["levels"].push_back(decision_json(level, int64_t(i)));
    }
  }
  member.last = {};
}

/// The names of the experts and each picture's decision; of several checkpoints, a list with one such entry each.
nlohmann::ordered_json routing_json(const Options& options, const std::vector<Member>& members) {
  nlohmann::ordered_json json;
  if (members.size() == 1) {
    json["experts"] = members[0].model.experts;
    json["pictures"] = members[0].decisions;
  } else {
    for (std::size_t m = 0; m < members.size(); ++m)
      json["checkpoints"].push_back({{"checkpoint", options.checkpoints[m]},
                                     {"experts", members[m].model.experts},
                                     {"pictures", members[m].decisions}});
  }
  return json;
}

int run(const Options& options) {
  const at::NoGradGuard no_grad;
  const at::Device device = examples::device_named(options.device);
  std::vector<Member> members;
  for (const std::string& checkpoint : options.checkpoints) members.push_back({examples::load_model(checkpoint, device)});
  const int64_t size = side_of(options, members);
  post::Ensemble ensemble = ensemble_of(members, post::views_from(options.views));
  const std::vector<fs::path> pictures = pictures_at(options.input);
  std::set<std::string> stems;
  for (const fs::path& picture : pictures)
    TORCH_CHECK(stems.insert(picture.stem().string()).second, "--input: two pictures are named ",
                picture.stem().string());
  fs::create_directories(options.output);

  std::vector<std::string> unreadable;
  train::Progress progress("predict", int64_t(pictures.size()));
  for (std::size_t begin = 0; begin < pictures.size(); begin += std::size_t(options.batch_size)) {
    const std::size_t end = std::min(pictures.size(), begin + std::size_t(options.batch_size));
    data::Batch batch;
    batch.height = batch.width = size;
    std::vector<Image> images;
    for (std::size_t i = begin; i < end; ++i) {
      try {
        data::Sample sample;
        sample.image = io::read_rgb(pictures[i]);
        sample.mask = Image(1, 1, 1);
        sample.name = pictures[i].stem().string();
        data::append(batch, sample, int64_t(i));
        images.push_back(std::move(sample.image));
      } catch (const std::runtime_error& error) {
        unreadable.push_back(pictures[i].filename().string() + ": " + error.what());
      }
    }
    if (batch.size > 0) {
      const std::vector<std::string> names = batch.names;
      const at::Tensor logits = ensemble(train::to_device(std::move(batch), device).images);
      for (std::size_t i = 0; i < names.size(); ++i) {
        Image map = io::map_image(logits[int64_t(i)][0], images[i].height, images[i].width);
        io::write_image(options.output / (names[i] + io::lossless_ending(1)),
                        options.crf.finish(images[i], std::move(map)));
      }
      for (Member& member : members) note_decisions(member, names);
    }
    progress.update(int64_t(end));
  }
  progress.finish();
  if (!options.routing.empty()) io::write_atomically(options.routing, routing_json(options, members).dump(1) + "\n");
  for (const std::string& problem : unreadable) std::cerr << "predict: not read: " << problem << '\n';
  return unreadable.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes the masks of hidden objects in pictures, and which experts were asked.");
  Options options;
  app.add_option("--checkpoint", options.checkpoints,
                 "weights of a trained model (.safetensors); of several, the mean of their logits")
      ->required();
  app.add_option("--input", options.input, "a picture or a folder of pictures")->required();
  app.add_option("--output", options.output, "folder for the masks")->required();
  app.add_option("--routing", options.routing, "JSON file for the experts chosen and their weights");
  app.add_option("--img-size", options.size, "side that the model sees, a multiple of 32; 0 for that of its training")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--tta", options.views,
                 "more views of each picture, whose logits are averaged: flip, vflip and scales, as in flip,0.75,1.25")
      ->check([](const std::string& list) {
        try {
          return post::views_from(list), std::string();
        } catch (const std::invalid_argument& error) {
          return std::string(error.what());
        }
      });
  examples::add_crf_flags(app, options.crf);
  app.add_option("--batch-size", options.batch_size, "pictures at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--device", options.device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const c10::Error& error) {
    std::cerr << "predict: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "predict: " << error.what() << '\n';
  }
  return 1;
}
