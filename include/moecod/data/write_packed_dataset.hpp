#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include <nlohmann/json.hpp>

#include "moecod/data/fresh.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/data/pack.hpp"
#include "moecod/data/split.hpp"
#include "moecod/data/write_dataset.hpp"

namespace moecod::data {

/// Writes the pictures of write_dataset as a packed data set (data/packed.hpp): one file a part, of the pictures as the
/// generator made them, where files of pictures hold them as JPEG keeps them; and the parameters in Info/regimes.json.
/// Needs no OpenCV. Parts of no picture have no file. Every picture is made twice, as write_packed reads its source
/// twice. The folder appears when it is complete; a run cut short leaves FOLDER.partial, which the next one replaces.
/// Returns false, and writes nothing, if the folder already holds this data set.
/// Errors: std::runtime_error if the folder holds something else; what write_packed and the generator give.
inline bool write_packed_dataset(const std::filesystem::path& output, const PhotographSplit& split,
                                 const DatasetOptions& options) {
  namespace fs = std::filesystem;
  const fs::path folder = detail::dataset_folder(output);
  const nlohmann::json parameters = detail::dataset_parameters(split, options, ".safetensors");
  if (detail::dataset_exists(folder, parameters)) return false;
  const struct {
    Split part;
    const std::vector<Photograph>& photographs;
    int64_t count;
  } parts[] = {{Split::Train, split.train, options.train},
               {Split::Validation, split.validation, options.validation},
               {Split::Test, split.test, options.test}};
  const fs::path partial = folder.string() + ".partial";
  fs::remove_all(partial);
  fs::create_directories(partial);
  const int64_t total = 2 * (options.train + options.validation + options.test);
  int64_t before = 0;
  for (uint64_t number = 0; number < 3; ++number) {
    const auto& part = parts[number];
    if (part.count == 0) continue;
    const Fresh source(detail::part_generator(part.photographs, options.picture, number), part.count);
    write_packed(packed_file(partial, part.part), source,
                 {.height = options.picture.size, .width = options.picture.size, .threads = options.threads,
                  .progress = [&](int64_t done, int64_t) {
                    if (options.progress) options.progress(before + done, total);
                  }});
    before += 2 * part.count;
  }
  detail::finish_dataset(partial, {{"parameters", parameters}}, folder);
  return true;
}

}  // namespace moecod::data
