#pragma once
#include <memory>
#include <string>
#include <vector>

#include "moecod/backbone/backbone.hpp"
#include "moecod/moe/kind.hpp"

namespace moecod::backbone {

/// The backbone named at run time, so that a model compiles once for all of them.
///
/// It stands wherever a backbone type does: `ModelLevel<backbone::Any, ...>`. The model holds the module that `make`
/// returns, so parameters have the same names as with the type itself. Names are timm's.
///
/// Its two functions are defined in moecod/backbone/any.ipp, so that a file that uses Any does not compile every backbone:
/// include that in exactly one source file of a program.
struct Any {
  using policy_kind = kind::backbone;

  struct Options {
    std::string name = "pvt_v2_b2";
    /// Drop-path rate of the last block, in [0, 1).
    double drop_path = 0.0;
  };

  /// The names that there are.
  static std::vector<std::string> names();

  /// Errors: c10::Error that lists the names, for one that is not among them.
  static std::shared_ptr<Backbone> make(const Options& options);
};

}  // namespace moecod::backbone
