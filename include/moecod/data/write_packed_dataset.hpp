#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>

#include "moecod/data/fresh.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/data/pack.hpp"
#include "moecod/data/split.hpp"
#include "moecod/data/write_dataset.hpp"

namespace moecod::data {

/// Writes the pictures of write_dataset as a packed data set (data/packed.hpp): one file a part, of the pictures as the
/// generator made them, where files of pictures hold them as JPEG keeps them. Needs no OpenCV. Parts of no picture have no
/// file. Every picture is made twice, as write_packed reads its source twice.
/// Errors: std::runtime_error if a part is already there; what write_packed and the generator give.
inline void write_packed_dataset(const std::filesystem::path& folder, const PhotographSplit& split,
                                 const DatasetOptions& options) {
  const struct {
    Split part;
    const std::vector<Photograph>& photographs;
    int64_t count;
  } parts[] = {{Split::Train, split.train, options.train},
               {Split::Validation, split.validation, options.validation},
               {Split::Test, split.test, options.test}};
  for (const auto& part : parts)
    if (std::filesystem::exists(packed_file(folder, part.part)))
      throw std::runtime_error(packed_file(folder, part.part).string() +
                               " is there already; choose another folder or remove it");
  std::filesystem::create_directories(folder);
  const int64_t total = 2 * (options.train + options.validation + options.test);
  int64_t before = 0;
  for (uint64_t number = 0; number < 3; ++number) {
    const auto& part = parts[number];
    if (part.count == 0) continue;
    const Fresh source(detail::part_generator(part.photographs, options.picture, number), part.count);
    write_packed(packed_file(folder, part.part), source,
                 {.height = options.picture.size, .width = options.picture.size, .threads = options.threads,
                  .progress = [&](int64_t done, int64_t) {
                    if (options.progress) options.progress(before + done, total);
                  }});
    before += 2 * part.count;
  }
}

}  // namespace moecod::data
