#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moecod/data/photograph.hpp"
#include "moecod/data/split.hpp"
#include "moecod/data/write_dataset.hpp"

namespace moecod::data {

/// The split of photographs that a data set of `write_dataset` or `write_packed_dataset` was made with, read from its
/// Info/regimes.json: what a trainer that makes fresh pictures needs, so that none is made from a validation or test
/// photograph. Photographs that the data set does not know are left out.
/// Errors: std::runtime_error if the file is missing or broken, or if a photograph that the data set names is not
/// among those given or has other pixels.
inline PhotographSplit split_of_dataset(const std::filesystem::path& root, const std::vector<Photograph>& photographs) {
  const std::filesystem::path path = root / "Info" / "regimes.json";
  std::ifstream file(path);
  if (!file) throw std::runtime_error("not a generated data set: cannot read " + path.string());
  const nlohmann::json found = nlohmann::json::parse(file, nullptr, false);
  const nlohmann::json::json_pointer where("/parameters/photographs");
  if (!found.is_object() || !found.contains(where)) throw std::runtime_error("broken label file " + path.string());

  std::map<std::string, const Photograph*> known;
  for (const Photograph& photograph : photographs) known[photograph.name()] = &photograph;
  PhotographSplit split;
  for (const auto& [name, part] : {std::pair{"train", &split.train}, std::pair{"validation", &split.validation},
                                   std::pair{"test", &split.test}}) {
    const auto names = found.at(where).value(name, nlohmann::json::object());
    for (const auto& [photograph, fingerprint] : names.items()) {
      const auto match = known.find(photograph);
      if (match == known.end() || fingerprint != detail::fingerprint(*match->second)) {
        throw std::runtime_error("photograph " + photograph + " of " + root.string() +
                                 (match == known.end() ? " is not among those given" : " has changed since"));
      }
      part->push_back(*match->second);
    }
  }
  return split;
}

}  // namespace moecod::data
