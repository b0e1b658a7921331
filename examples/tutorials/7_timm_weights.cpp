// Weights of a backbone from a file under timm's names. Here the program makes the file itself; yours comes from
//   python3 -c "import timm, safetensors.torch as s; s.save_file(timm.create_model('convnext_tiny',
//               pretrained=True).state_dict(), 'convnext_tiny.safetensors')"
#include <moecod/backbone/any.ipp>  // any.hpp with its definitions: in one .cpp of a program
#include <moecod/backbone/keys.hpp>
#include <moecod/core/state.hpp>
#include <moecod/io/weights.hpp>
#include <torch/torch.h>

#include <cstdio>
#include <filesystem>
#include <string>

using namespace moecod;

int main() {
  const std::filesystem::path file = std::filesystem::temp_directory_path() / "moecod_tutorial_7.safetensors";
  torch::manual_seed(0);
  const auto theirs = backbone::Any::make({.name = "edgenext_small"});
  StateDict state = state_dict(*theirs);
  state.emplace_back("head.fc.weight", torch::zeros({1000, 304}));          // a classifier, which is not needed
  io::write_state(file, state);

  // The names of features_only models and of the original releases are understood as well.
  torch::manual_seed(1);
  const auto ours = backbone::Any::make({.name = "edgenext_small"});
  const StateDict read = io::read_state(file);
  const auto report = io::load_state(*ours, read, {.rename = backbone::timm_keys(read)});
  std::printf("loaded %zu tensors, ignored %zu\n", report.loaded.size(), report.ignored.size());

  torch::NoGradGuard no_grad;
  theirs->eval();
  ours->eval();
  const at::Tensor images = torch::randn({1, 3, 64, 64});
  const Pyramid a = theirs->forward(images), b = ours->forward(images);
  for (std::size_t i = 0; i < a.size(); ++i)
    std::printf("level %zu: %lld channels, equal: %s\n", i + 1, static_cast<long long>(b[i].size(1)),
                at::equal(a[i], b[i]) ? "yes" : "no");

  // What does not fit is an error that names every key, and nothing is loaded.
  state.erase(state.begin());
  state[3].second = torch::zeros({7});
  io::write_state(file, state);
  const StateDict broken = io::read_state(file);
  try {
    io::load_state(*ours, broken, {.rename = backbone::timm_keys(broken)});
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::printf("names what is missing: %s, names what is misshapen: %s\n",
                text.find("missing: stem.0.weight") != std::string::npos ? "yes" : "no",
                text.find("misshapen: ") != std::string::npos ? "yes" : "no");
  }
  std::filesystem::remove(file);
}
