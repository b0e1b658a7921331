#pragma once
// What the trainers share: where their pictures come from, where they run, and flags that change defaults of others.

#include <filesystem>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "examples/device.hpp"
#include "moecod/core/options.hpp"
#include "moecod/data/any_source.hpp"
#include "moecod/data/dataset_split.hpp"
#include "moecod/data/folder.hpp"
#include "moecod/data/fresh.hpp"
#include "moecod/data/hold_out.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/data/photograph_folder.hpp"
#include "moecod/io/safetensors.hpp"
#include "moecod/train/flags.hpp"

namespace moecod::examples {

struct DataOptions {
  std::string data_root;
  std::vector<std::string> photos;
  int64_t fresh = 0;
  double difficulty = 0.3;
  double validation_share = 0.05;
  int64_t max_bad = 10;

  static constexpr auto options = std::make_tuple(
      option(&DataOptions::data_root, "data-root", "data set: COD10K-v3, CAMO, Imgs and GT, or packed"),
      option(&DataOptions::photos, "photos", "with --fresh: the photographs that the data set was made from"),
      option(&DataOptions::fresh, "fresh", "generate this many new pictures an epoch; 0 to train on the files",
             at_least(0)),
      option(&DataOptions::difficulty, "difficulty", "of fresh pictures", between(0, 1)),
      option(&DataOptions::validation_share, "validation-share",
             "share of the training set to validate on, where the data set has no such part", between(0.001, 0.5)),
      option(&DataOptions::max_bad, "max-bad", "unreadable pairs that are tolerated", at_least(0)));
};

struct TrainingData {
  data::AnySource training, validation;
};

/// The two parts as they are in the data set, packed or not.
inline TrainingData read_training_data(const DataOptions& options, int64_t seed) {
  if (data::is_packed(options.data_root)) {
    return {data::open_source(options.data_root, data::Split::Train),
            data::open_source(options.data_root, data::Split::Validation)};
  }
  auto [training, validation] =
      data::open_training(options.data_root, options.validation_share, static_cast<uint64_t>(seed));
  const data::Folder::Options folder{.max_bad = options.max_bad};
  return {data::AnySource(data::Folder(std::move(training), folder)),
          data::AnySource(data::Folder(std::move(validation), folder))};
}

/// Opens the training and the validation part. Fresh pictures have `size` pixels a side; they differ by run seed and
/// by stage. Errors: c10::Error that names the flag; what the readers throw.
inline TrainingData open_training_data(const DataOptions& options, int64_t size, int64_t seed, int64_t stage) {
  namespace fs = std::filesystem;
  TORCH_CHECK(!options.data_root.empty(), "--data-root is missing: give the folder of a data set");
  TORCH_CHECK(options.fresh == 0 || !options.photos.empty(), "--fresh needs --photos");
  TrainingData out = read_training_data(options, seed);
  if (options.fresh == 0) return out;
  const data::PhotographFolder photographs =
      data::read_photographs(std::vector<fs::path>(options.photos.begin(), options.photos.end()));
  data::Generator generator(
      data::split_of_dataset(options.data_root, photographs.photographs).train,
      {.size = size, .difficulty = options.difficulty,
       .seed = 0xF4E5 + 31 * static_cast<uint64_t>(seed) + 1009 * static_cast<uint64_t>(stage)});
  out.training = data::AnySource(data::Fresh(std::move(generator), options.fresh));
  return out;
}

/// The key under which a checkpoint to be resumed records how its run trains.
inline constexpr const char* recipe_key = "moecod.recipe";

/// What of recipe and data changes the figures of a run.
template <class Recipe>
nlohmann::ordered_json recipe_json(const Recipe& recipe, const DataOptions& data) {
  nlohmann::ordered_json json = train::options_to_json(recipe);
  json["fresh"] = data.fresh;
  json["difficulty"] = data.difficulty;
  json["validation-share"] = data.validation_share;
  return json;
}

/// Errors: std::runtime_error if the run to continue had other options, but for `except`.
inline void check_recorded(const io::Metadata& about, const char* key, const nlohmann::ordered_json& mine,
                           const std::vector<std::string>& except) {
  const auto found = about.find(key);
  train::check_same(found == about.end() ? nlohmann::ordered_json() : nlohmann::ordered_json::parse(found->second), mine,
                    except, "--resume-from: the run to continue");
}

/// The value of a flag before the flags are parsed, since it changes the defaults of others.
inline std::string peek(int argc, char** argv, const std::string& flag, const std::string& otherwise) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == flag && i + 1 < argc) return argv[i + 1];
    if (word.starts_with(flag + "=")) return word.substr(flag.size() + 1);
  }
  return otherwise;
}

}  // namespace moecod::examples
