#pragma once
// The results of all runs as one table of comma-separated values, a line a run.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "moecod/io/file.hpp"

namespace moecod::examples::ablation {

namespace detail {

using Json = nlohmann::ordered_json;

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

/// Adds to a run's result what its logs say: seconds a step, use in training over the last epoch and the mean cosine of
/// task and auxiliary gradients.
inline void add_training(detail::Json& result, const std::filesystem::path& folder) {
  std::vector<double> seconds;
  const auto levels = result.at("levels").size();
  std::vector<std::vector<double>> cosines(levels);
  for (int64_t stage = 1; stage <= int64_t(result.at("stages")); ++stage) {
    const std::string name = "stage" + std::to_string(stage) + ".jsonl";
    for (const auto& line : detail::json_lines(folder / ("metrics_" + name))) {
      seconds.push_back(line.at("seconds_per_step"));
      for (std::size_t i = 0; i < levels; ++i)
        if (line.at("levels").at(i).contains("trained_usage"))
          result["levels"][i]["trained_usage"] = line["levels"][i]["trained_usage"];
    }
    for (const auto& line : detail::json_lines(folder / ("interference_" + name)))
      for (std::size_t i = 0; i < levels; ++i)
        if (line.at("cosine").at(i).is_number()) cosines[i].push_back(line["cosine"][i]);
  }
  result["seconds_per_step"] = detail::mean_of(seconds);
  for (std::size_t i = 0; i < levels; ++i) result["levels"][i]["gradient_cosine"] = detail::mean_of(cosines[i]);
}

/// Columns: table, the axes, seed, every metric, seconds_per_step, and of each level max_violation, noise_floor,
/// entropy, gradient_cosine, least and largest use in training. Results as add_training leaves them.
inline std::string to_csv(const std::vector<detail::Json>& results, const std::vector<std::string>& axes) {
  if (results.empty()) return "";
  std::string out = "table";
  for (const std::string& axis : axes) out += "," + axis;
  out += ",seed";
  for (const auto& [name, value] : results.front().at("metrics").items()) out += "," + name;
  out += ",seconds_per_step";
  const std::vector<std::string> of_level{"max_violation", "noise_floor", "entropy", "gradient_cosine"};
  for (std::size_t i = 1; i <= results.front().at("levels").size(); ++i) {
    for (const std::string& name : of_level) out += ",level" + std::to_string(i) + "_" + name;
    out += ",level" + std::to_string(i) + "_least_use,level" + std::to_string(i) + "_largest_use";
  }
  out += "\n";
  const auto cell = [](const detail::Json& value) { return value.is_null() ? std::string() : value.dump(); };
  for (const detail::Json& result : results) {
    out += std::string(result.at("table"));
    for (const auto& policy : result.at("policies")) out += "," + std::string(policy);
    out += "," + result.at("seed").dump();
    for (const auto& [name, value] : result.at("metrics").items()) out += "," + cell(value);
    out += "," + cell(result.at("seconds_per_step"));
    for (const auto& level : result.at("levels")) {
      for (const std::string& name : of_level) out += "," + cell(level.at(name));
      const std::vector<double> use = level.value("trained_usage", std::vector<double>{});
      const auto [least, most] = std::minmax_element(use.begin(), use.end());
      out += "," + (use.empty() ? "" : detail::Json(*least).dump()) + "," + (use.empty() ? "" : detail::Json(*most).dump());
    }
    out += "\n";
  }
  return out;
}

}  // namespace moecod::examples::ablation
