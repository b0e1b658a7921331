#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace moecod::backbone {

namespace detail {

inline bool is_digit(const std::string& text, std::size_t at) {
  return at < text.size() && text[at] >= '0' && text[at] <= '9';
}

/// The name of stage `stage` (from 1, as the original PVT release counts) in timm.
inline std::string stage_name(char stage) { return std::string("stages.") + static_cast<char>(stage - 1); }

}  // namespace detail

/// timm's name of a backbone parameter, for a name as published files write it; std::nullopt for the classifier.
///
/// Understood, beside timm's own names:
/// - features_only models, which flatten top-level sequences: stages_0, stem_0, layers_0 -> stages.0, stem.0, layers.0
/// - the original PVT release: patch_embed1, patch_embed{2,3,4} -> patch_embed, stages.{1,2,3}.downsample;
///   block{i}.j -> stages.{i-1}.blocks.j; norm{i} -> stages.{i-1}.norm; dwconv.dwconv -> dwconv
/// Classifier: head.*. Use as io::LoadOptions::rename.
inline std::optional<std::string> timm_key(const std::string& key) {
  using detail::is_digit, detail::stage_name;
  if (key.starts_with("head.")) return std::nullopt;
  std::string out = key;
  for (const std::string_view name : {"stages", "stem", "layers"})
    if (out.starts_with(name) && out[name.size()] == '_' && is_digit(out, name.size() + 1)) out[name.size()] = '.';

  const std::string_view embed = "patch_embed", block = "block", norm = "norm";
  if (out.starts_with(embed) && is_digit(out, embed.size())) {
    const char stage = out[embed.size()];
    out.replace(0, embed.size() + 1, stage == '1' ? "patch_embed" : stage_name(stage) + ".downsample");
  } else if (out.starts_with(block) && is_digit(out, block.size())) {
    out.replace(0, block.size() + 1, stage_name(out[block.size()]) + ".blocks");
  } else if (out.starts_with(norm) && is_digit(out, norm.size())) {
    out.replace(0, norm.size() + 1, stage_name(out[norm.size()]) + ".norm");
  }
  const std::string_view twice = "dwconv.dwconv";
  if (const auto at = out.find(twice); at != std::string::npos) out.replace(at, twice.size(), "dwconv");
  return out;
}

}  // namespace moecod::backbone
