// Finds the hidden objects in pictures: writes a mask of each at the picture's size, and who was asked.
//
//   predict --checkpoint checkpoints_moe/ensemble_best.safetensors --input photos --output masks --routing routing.json

#include <CLI/CLI.hpp>
#include <torch/cuda.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "examples/camo_model.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/image_file.hpp"
#include "moecod/io/map_image.hpp"
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

int run(const std::string& checkpoint, const std::string& input, const fs::path& output, const std::string& routing,
        int64_t size, int64_t batch_size, const std::string& device_name) {
  const at::NoGradGuard no_grad;
  const bool cuda = device_name == "cuda" || (device_name == "auto" && torch::cuda::is_available());
  const at::Device device = cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const auto model = examples::load_camo(checkpoint);
  model->to(device);
  if (size == 0) size = examples::recorded_size(checkpoint);
  TORCH_CHECK(size % 32 == 0, "--img-size must be a multiple of 32, got ", size);
  const std::vector<fs::path> pictures = pictures_at(input);
  std::set<std::string> stems;
  for (const fs::path& picture : pictures)
    TORCH_CHECK(stems.insert(picture.stem().string()).second, "--input: two pictures are named ",
                picture.stem().string());
  fs::create_directories(output);

  nlohmann::ordered_json decisions = nlohmann::ordered_json::object();
  std::vector<std::string> unreadable;
  train::Progress progress("predict", int64_t(pictures.size()));
  for (std::size_t begin = 0; begin < pictures.size(); begin += std::size_t(batch_size)) {
    data::Batch batch;
    batch.height = batch.width = size;
    std::vector<std::pair<int64_t, int64_t>> sizes;
    for (std::size_t i = begin; i < std::min(pictures.size(), begin + std::size_t(batch_size)); ++i) {
      try {
        data::Sample sample;
        sample.image = io::read_rgb(pictures[i]);
        sample.mask = Image(1, 1, 1);
        sample.name = pictures[i].stem().string();
        data::append(batch, sample, int64_t(i));
        sizes.emplace_back(sample.image.height, sample.image.width);
      } catch (const std::runtime_error& error) {
        unreadable.push_back(pictures[i].filename().string() + ": " + error.what());
      }
    }
    if (batch.size > 0) {
      const std::vector<std::string> names = batch.names;
      const RoutedLogits out = (*model)(train::to_device(std::move(batch), device).images, WithRouting{});
      const at::Tensor chosen = out.top_k_indices.to(at::kCPU), weights = out.top_k_weights.to(at::kCPU);
      for (std::size_t i = 0; i < names.size(); ++i) {
        const auto at = int64_t(i);
        io::write_image(output / (names[i] + io::lossless_ending(1)),
                        io::map_image(out.logits[at][0], sizes[i].first, sizes[i].second));
        auto& decision = decisions[names[i]];
        for (int64_t k = 0; k < chosen.size(1); ++k) {
          decision["experts"].push_back(chosen[at][k].item<int64_t>());
          decision["weights"].push_back(weights[at][k].item<double>());
        }
      }
    }
    progress.update(int64_t(std::min(pictures.size(), begin + std::size_t(batch_size))));
  }
  progress.finish();
  if (!routing.empty())
    io::write_atomically(routing, nlohmann::ordered_json{{"experts", examples::expert_names}, {"pictures", decisions}}
                                          .dump(1) + "\n");
  for (const std::string& problem : unreadable) std::cerr << "predict: not read: " << problem << '\n';
  return unreadable.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes the masks of hidden objects in pictures, and which experts were asked.");
  std::string checkpoint, input, output, routing, device = "auto";
  int64_t size = 0, batch = 8;
  app.add_option("--checkpoint", checkpoint, "weights of a trained model (.safetensors)")->required();
  app.add_option("--input", input, "a picture or a folder of pictures")->required();
  app.add_option("--output", output, "folder for the masks")->required();
  app.add_option("--routing", routing, "JSON file for the experts chosen and their weights");
  app.add_option("--img-size", size, "side that the model sees, a multiple of 32; 0 for that of its training")
      ->capture_default_str();
  app.add_option("--batch-size", batch, "pictures at once")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--device", device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  CLI11_PARSE(app, argc, argv);
  try {
    return run(checkpoint, input, output, routing, size, batch, device);
  } catch (const c10::Error& error) {
    std::cerr << "predict: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "predict: " << error.what() << '\n';
  }
  return 1;
}
