#pragma once
// What the trainer's weights files hold and how parts of them are loaded.

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "examples/camo_model.hpp"

namespace moecod::examples {

inline constexpr const char* backbone_key = "moecod.backbone_id";

/// A fingerprint of the backbone's weights: experts trained on one set of them do not fit another.
inline std::string backbone_id(const StateDict& state) {
  uint64_t hash = 14695981039346656037ULL;
  for (const auto& [name, tensor] : state) {
    if (!name.starts_with("backbone.")) continue;
    const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
    const auto* bytes = static_cast<const unsigned char*>(host.const_data_ptr());
    for (std::size_t i = 0; i < host.nbytes(); ++i) hash = (hash ^ bytes[i]) * 1099511628211ULL;
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

inline bool starts_with_any(const std::string& name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return name.starts_with(p); });
}

/// Writes the parts of a model whose names start with one of `prefixes`.
inline void write_parts(const std::filesystem::path& path, const torch::nn::Module& model, const CamoOptions& options,
                        const std::vector<std::string>& prefixes, io::Metadata about = {}) {
  const StateDict all = state_dict(model);
  StateDict some;
  for (const auto& entry : all)
    if (starts_with_any(entry.first, prefixes)) some.push_back(entry);
  about["format"] = "pt";
  about[model_key] = train::options_to_json(options).dump();
  about[variant_key] = variant<Camo>();
  about[backbone_key] = backbone_id(all);
  io::write_state(path, some, about);
}

/// The named parts of a model: backbone, each expert, router, balance.
inline std::vector<std::pair<std::string, std::string>> parts_of(int64_t experts) {
  std::vector<std::pair<std::string, std::string>> parts{{"backbone", "backbone."}};
  for (int64_t e = 0; e < experts; ++e)
    parts.emplace_back("expert " + std::to_string(e), "mixture.experts." + std::to_string(e) + ".");
  parts.emplace_back("router", "mixture.router.");
  parts.emplace_back("balance", "mixture.balance.");
  return parts;
}

/// Loads whatever parts the files hold, later files over earlier ones, and says what was found and what was not.
/// A part is loaded whole or not at all; the balancing state is left out where it does not fit.
/// Errors: c10::Error when a file is for another backbone, when experts were trained on different backbones, or with
/// every key of a part that does not fit.
inline std::set<std::string> load_parts(Camo& model, const CamoOptions& options,
                                        const std::vector<std::string>& files) {
  std::set<std::string> found;
  std::map<std::string, std::string> trained_on;
  for (const std::string& path : files) {
    const CamoOptions recorded = recorded_options(path);
    TORCH_CHECK(recorded.backbone == options.backbone, "--load-experts-from: ", path, " was trained with --backbone ",
                recorded.backbone, ", this run has ", options.backbone);
    const StateDict state = io::read_state(path);
    const auto metadata = io::SafetensorsFile(io::detail::weights_file(path)).metadata();
    std::string loaded;
    for (const auto& [part, prefix] : parts_of(Camo::num_experts)) {
      StateDict mine;
      for (const auto& entry : state)
        if (entry.first.starts_with(prefix)) mine.push_back(entry);
      if (mine.empty()) continue;
      if (part.starts_with("expert")) {
        if (const auto id = metadata.find(backbone_key); id != metadata.end()) trained_on[id->second] = path;
        TORCH_CHECK(trained_on.size() <= 1, "--load-experts-from: experts were trained on different backbones: those of ",
                    trained_on.begin()->second, " (", trained_on.begin()->first, ") and those of ",
                    trained_on.rbegin()->second, " (", trained_on.rbegin()->first,
                    "). Train them together, or each after the first on the first one's frozen backbone");
      }
      // Strict for the names of this part, so that a piece of one is refused with every key that is missing.
      io::load_state(model, mine,
                     {.partial = part == "balance",
                      .optional = [&prefix](const std::string& name) { return !name.starts_with(prefix); }});
      found.insert(part);
      loaded += (loaded.empty() ? "" : ", ") + part;
    }
    TORCH_CHECK(!loaded.empty(), "--load-experts-from: ", path, " holds no part of this model");
    std::cout << "loaded from " << path << ": " << loaded << '\n';
  }
  std::string missing;
  for (const auto& [part, prefix] : parts_of(Camo::num_experts))
    if (!found.contains(part)) missing += (missing.empty() ? "" : ", ") + part;
  if (!missing.empty()) std::cout << "not found in any file, so left at the start: " << missing << std::endl;
  return found;
}

}  // namespace moecod::examples
