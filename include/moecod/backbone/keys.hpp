#pragma once
#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "moecod/core/state.hpp"

namespace moecod::backbone {

namespace detail {

inline bool is_digit(const std::string& text, std::size_t at) {
  return at < text.size() && text[at] >= '0' && text[at] <= '9';
}

/// The name of stage `stage` (from 1, as the original PVT release counts) in timm.
inline std::string stage_name(char stage) { return std::string("stages.") + static_cast<char>(stage - 1); }

inline void replace_once(std::string& text, std::string_view what, std::string_view with) {
  if (const auto at = text.find(what); at != std::string::npos) text.replace(at, what.size(), with);
}

/// timm's name for one of the original ConvNeXt release; others as they are.
inline std::string convnext_release_key(std::string key) {
  const std::string_view downsample = "downsample_layers.", stages = "stages.";
  if (key.starts_with(downsample) && is_digit(key, downsample.size())) {
    const char stage = key[downsample.size()];
    key.replace(0, downsample.size() + 1, stage == '0' ? "stem" : std::string("stages.") + stage + ".downsample");
  } else if (key.starts_with(stages) && is_digit(key, stages.size()) && is_digit(key, stages.size() + 2)) {
    key.insert(stages.size() + 2, "blocks.");
    replace_once(key, ".dwconv.", ".conv_dw.");
    replace_once(key, ".pwconv", ".mlp.fc");
  }
  return key;
}

}  // namespace detail

/// timm's name of a backbone parameter, for a name as published files write it; std::nullopt for the classifier.
///
/// Understood, beside timm's own names:
/// - features_only models, which flatten top-level sequences: stages_0, stem_0, layers_0 -> stages.0, stem.0, layers.0
/// - the original PVT release: patch_embed1, patch_embed{2,3,4} -> patch_embed, stages.{1,2,3}.downsample;
///   block{i}.j -> stages.{i-1}.blocks.j; norm{i} -> stages.{i-1}.norm; dwconv.dwconv -> dwconv
/// - the original ConvNeXt release: downsample_layers.0 -> stem, downsample_layers.i -> stages.i.downsample;
///   stages.i.j -> stages.i.blocks.j; dwconv, pwconv1, pwconv2 -> conv_dw, mlp.fc1, mlp.fc2
/// Ignored: head.*; norm.*, which only the classifier of Swin and ConvNeXt reads; Swin's attn_mask and
/// relative_position_index, which follow from the sizes. For a whole file use timm_keys.
inline std::optional<std::string> timm_key(const std::string& key) {
  using detail::is_digit, detail::stage_name;
  if (key.starts_with("head.") || key.starts_with("norm.")) return std::nullopt;
  if (key.ends_with(".attn_mask") || key.ends_with(".relative_position_index")) return std::nullopt;
  std::string out = detail::convnext_release_key(key);
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

/// timm_key for the names of one file, as io::LoadOptions::rename. Files of Swin older than timm 0.9, those of the original
/// release among them, name the downsampling before stage i + 1 as the end of stage i; such a file is known by its
/// layers.0.downsample, and its stages are counted on.
inline std::function<std::optional<std::string>(const std::string&)> timm_keys(const StateDict& state) {
  const auto is_old = [](const auto& entry) { return timm_key(entry.first).value_or("").starts_with("layers.0.downsample."); };
  if (std::none_of(state.begin(), state.end(), is_old)) return timm_key;
  return [](const std::string& key) {
    std::optional<std::string> out = timm_key(key);
    const std::string_view layers = "layers.";
    if (out && out->starts_with(layers) && out->find(".downsample.") == layers.size() + 1) ++(*out)[layers.size()];
    return out;
  };
}

}  // namespace moecod::backbone
