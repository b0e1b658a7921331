// The pyramid of a backbone for given images: the check of a port against another framework, and a way to use the
// backbones from any language.
//
//   features --backbone pvt_v2_b2 --weights pvt_v2_b2.safetensors
//            --input images.safetensors --output levels.safetensors
//
// The input file holds `images` [B, 3, H, W], float32, normalised; the output `level1` to `level4`.
#include <CLI/CLI.hpp>
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <exception>
#include <string>

#include "moecod/backbone/any.hpp"
#include "moecod/backbone/keys.hpp"
#include "moecod/io/weights.hpp"

namespace {

using namespace moecod;

at::Tensor read_images(const std::string& path) {
  for (const auto& [name, tensor] : io::read_state(path))
    if (name == "images") return tensor;
  TORCH_CHECK(false, path, " has no tensor 'images'");
}

void run(const backbone::Any::Options& options, const std::string& weights, const std::string& input,
         const std::string& output) {
  at::NoGradGuard no_grad;
  const auto model = backbone::Any::make(options);
  model->eval();
  const StateDict state = io::read_state(weights);
  const auto report = io::load_state(*model, state, {.rename = backbone::timm_keys(state)});
  std::printf("loaded %zu tensors, ignored %zu of the classifier\n", report.loaded.size(), report.ignored.size());
  StateDict levels;
  for (const at::Tensor& level : model->forward(read_images(input)))
    levels.emplace_back("level" + std::to_string(levels.size() + 1), level);
  io::write_state(output, levels);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Writes the feature maps of a backbone for images in a safetensors file"};
  backbone::Any::Options options;
  std::string weights, input, output;
  app.add_option("--backbone", options.name, "timm's name")
      ->check(CLI::IsMember(backbone::Any::names()))
      ->capture_default_str();
  app.add_option("--weights", weights, "safetensors file, with timm's names or those of the original releases of PVT, Swin or ConvNeXt")->required();
  app.add_option("--input", input, "safetensors file with `images` [B, 3, H, W]")->required();
  app.add_option("--output", output, "safetensors file to write")->required();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options, weights, input, output);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "features: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "features: %s\n", error.what());
    return 1;
  }
}
