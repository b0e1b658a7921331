#pragma once
// What the program knows of a row, whose code is in an object of its own.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "examples/ablation/any_model.hpp"

namespace moecod::examples::ablation {

/// What rows differ in.
enum class Axis { router, experts, gate, top_k, balance, dispatch };
inline const std::vector<std::string> axis_names{"router", "experts", "gate", "top_k", "balance", "dispatch"};

struct RowEntry {
  std::string table;
  std::vector<std::string> policies;  ///< one an axis, in the order of Axis
  std::vector<std::string> base;      ///< what a table has on an axis that it leaves out
  std::unique_ptr<AnyFeatureModel> (*make)(int64_t head_width);

  /// The name of its folder: the policies joined by '-'.
  std::string key() const {
    std::string out;
    for (const std::string& policy : policies) out += (out.empty() ? "" : "-") + policy;
    return out;
  }
};

/// Row I of rows.def; row.cpp is compiled once for every I.
template <std::size_t I>
RowEntry make_row();

}  // namespace moecod::examples::ablation
