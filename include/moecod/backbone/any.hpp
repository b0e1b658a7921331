#pragma once
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/backbone/convnext.hpp"
#include "moecod/backbone/edgenext.hpp"
#include "moecod/backbone/pvt_v2.hpp"
#include "moecod/backbone/swin.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::backbone {

/// The backbone named at run time, so that a model compiles once for all of them.
///
/// It stands wherever a backbone type does: `ModelLevel<backbone::Any, ...>`. The model holds the module that `make`
/// returns, so parameters have the same names as with the type itself. Names are timm's.
/// Errors: c10::Error that lists the names, for one that is not among them.
struct Any {
  using policy_kind = kind::backbone;
  /// The backbones that can be named; a new one is added here.
  using Known = std::tuple<PvtV2B0, PvtV2B1, PvtV2B2, PvtV2B2Li, PvtV2B3, PvtV2B4, PvtV2B5, EdgeNextSmall,
                           EdgeNextBase, SwinTiny, SwinSmall, SwinBase, ConvNextTiny, ConvNextSmall, ConvNextBase>;

  struct Options {
    std::string name = "pvt_v2_b2";
    /// Drop-path rate of the last block, in [0, 1).
    double drop_path = 0.0;
  };

  static std::vector<std::string> names() {
    return [&]<class... B>(std::tuple<B...>*) {
      return std::vector<std::string>{B::name...};
    }(static_cast<Known*>(nullptr));
  }

  static std::shared_ptr<Backbone> make(const Options& options) {
    std::shared_ptr<Backbone> out;
    [&]<class... B>(std::tuple<B...>*) {
      const auto make_if_named = [&]<class T>(T*) {
        if (options.name == T::name) out = std::make_shared<T>(typename T::Options{.drop_path = options.drop_path});
      };
      (make_if_named(static_cast<B*>(nullptr)), ...);
    }(static_cast<Known*>(nullptr));
    if (out) return out;
    std::string list;
    for (const std::string& name : names()) list += (list.empty() ? "" : ", ") + name;
    TORCH_CHECK(false, "backbone: there is no '", options.name, "'; known are ", list);
  }
};

}  // namespace moecod::backbone
