#pragma once

#include <filesystem>
#include <utility>

#include "moecod/data/any_source.hpp"
#include "moecod/data/folder.hpp"
#include "moecod/data/packed.hpp"
#include "moecod/data/records.hpp"

namespace moecod::data {

/// The file of a part of a packed data set: ROOT/train.safetensors, validation.safetensors or test.safetensors.
inline std::filesystem::path packed_file(const std::filesystem::path& root, Split split) {
  return root / (split == Split::Train ? "train.safetensors"
                                       : split == Split::Test ? "test.safetensors" : "validation.safetensors");
}

/// Whether ROOT holds a packed data set rather than files of pictures.
inline bool is_packed(const std::filesystem::path& root) {
  return std::filesystem::exists(packed_file(root, Split::Train)) || std::filesystem::exists(packed_file(root, Split::Test));
}

/// A part of a data set, packed or not. Errors: what Packed, or open and Folder, give.
inline AnySource open_source(const std::filesystem::path& root, Split split, const Folder::Options& options = {}) {
  if (is_packed(root)) return AnySource(Packed(packed_file(root, split)));
  return AnySource(Folder(open(root, split), options));
}

}  // namespace moecod::data
