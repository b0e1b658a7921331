#pragma once
// The results of runs, and all of them as one table of comma-separated values. Needs no LibTorch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace moecod::examples::ablation {

using Json = nlohmann::ordered_json;

namespace detail {

inline std::vector<Json> json_lines(const std::filesystem::path& path) {
  std::vector<Json> out;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    if (Json record = Json::parse(line, nullptr, false); record.is_object()) out.push_back(std::move(record));
  return out;
}

inline Json mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? Json(nullptr) : Json(sum / double(values.size()));
}

}  // namespace detail

/// Adds to a run's result what its logs say: seconds a step of the last stage, and of each level the use in the last
/// epoch of training and the means over all epochs of gradient_cosine and gradient_ratio.
inline void add_training(Json& result, const std::filesystem::path& folder) {
  const std::size_t levels = result.at("levels").size();
  std::vector<double> seconds;
  std::vector<std::vector<double>> cosines(levels), ratios(levels);
  for (int64_t stage = 1; stage <= int64_t(result.at("stages")); ++stage) {
    const std::string name = "stage" + std::to_string(stage) + ".jsonl";
    seconds.clear();
    for (const Json& line : detail::json_lines(folder / ("metrics_" + name))) {
      seconds.push_back(line.at("seconds_per_step"));
      for (std::size_t i = 0; i < levels; ++i)
        if (line.at("levels").at(i).contains("trained_usage"))
          result["levels"][i]["trained_usage"] = line["levels"][i]["trained_usage"];
    }
    for (const Json& line : detail::json_lines(folder / ("interference_" + name)))
      for (std::size_t i = 0; i < levels; ++i) {
        if (line.at("cosine").at(i).is_number()) cosines[i].push_back(line["cosine"][i]);
        if (line.at("ratio").at(i).is_number()) ratios[i].push_back(line["ratio"][i]);
      }
  }
  result["seconds_per_step"] = detail::mean_of(seconds);
  for (std::size_t i = 0; i < levels; ++i) {
    result["levels"][i]["gradient_cosine"] = detail::mean_of(cosines[i]);
    result["levels"][i]["gradient_ratio"] = detail::mean_of(ratios[i]);
  }
}

/// The folders of all runs below a folder, sorted: ROW/seedN.
inline std::vector<std::filesystem::path> run_folders(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> out;
  for (const auto& row : std::filesystem::directory_iterator(folder)) {
    if (!row.is_directory()) continue;
    for (const auto& seed : std::filesystem::directory_iterator(row.path()))
      if (seed.is_directory() && seed.path().filename().string().starts_with("seed")) out.push_back(seed.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// The results of all runs below a folder that are done. Errors: nlohmann::json::exception for a file that is not JSON.
inline std::vector<Json> all_results(const std::filesystem::path& folder) {
  std::vector<Json> out;
  for (const auto& run : run_folders(folder))
    if (std::ifstream in(run / "result.json"); in) out.push_back(Json::parse(in));
  return out;
}

/// Columns: the axes, seed, every metric, seconds_per_step, and of each level max_violation, noise_floor, entropy,
/// label_information, gradient_cosine, gradient_ratio, least_use and largest_use in the last epoch of training.
inline std::string to_csv(const std::vector<Json>& results, const std::vector<std::string>& axes) {
  if (results.empty()) return "";
  const std::vector<std::string> of_level{"max_violation",     "noise_floor",     "entropy",
                                          "label_information", "gradient_cosine", "gradient_ratio"};
  std::string out;
  for (const std::string& axis : axes) out += axis + ",";
  out += "seed";
  for (const auto& [name, value] : results.front().at("metrics").items()) out += "," + name;
  out += ",seconds_per_step";
  for (std::size_t i = 1; i <= results.front().at("levels").size(); ++i) {
    for (const std::string& name : of_level) out += ",level" + std::to_string(i) + "_" + name;
    out += ",level" + std::to_string(i) + "_least_use,level" + std::to_string(i) + "_largest_use";
  }
  out += "\n";
  const auto cell = [](const Json& value) { return value.is_null() ? std::string() : value.dump(); };
  for (const Json& result : results) {
    for (const auto& policy : result.at("policies")) out += std::string(policy) + ",";
    out += result.at("seed").dump();
    for (const auto& [name, value] : result.at("metrics").items()) out += "," + cell(value);
    out += "," + cell(result.at("seconds_per_step"));
    for (const auto& level : result.at("levels")) {
      for (const std::string& name : of_level) out += "," + cell(level.at(name));
      const std::vector<double> use = level.value("trained_usage", std::vector<double>{});
      const auto [least, most] = std::minmax_element(use.begin(), use.end());
      out += "," + (use.empty() ? "" : Json(*least).dump()) + "," + (use.empty() ? "" : Json(*most).dump());
    }
    out += "\n";
  }
  return out;
}

}  // namespace moecod::examples::ablation
