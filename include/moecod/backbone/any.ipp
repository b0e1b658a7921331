#pragma once
// The definitions of backbone::Any; to be included in exactly one source file of a program.
#include <tuple>

#include "moecod/backbone/any.hpp"
#include "moecod/backbone/convnext.hpp"
#include "moecod/backbone/edgenext.hpp"
#include "moecod/backbone/pvt_v2.hpp"
#include "moecod/backbone/swin.hpp"

namespace moecod::backbone {

namespace detail {

/// The backbones that Any can name; a new one is added here.
using Known = std::tuple<PvtV2B0, PvtV2B1, PvtV2B2, PvtV2B2Li, PvtV2B3, PvtV2B4, PvtV2B5, EdgeNextSmall, EdgeNextBase,
                         SwinTiny, SwinSmall, SwinBase, ConvNextTiny, ConvNextSmall, ConvNextBase>;

}  // namespace detail

std::vector<std::string> Any::names() {
  return [&]<class... B>(std::tuple<B...>*) {
    return std::vector<std::string>{B::name...};
  }(static_cast<detail::Known*>(nullptr));
}

std::shared_ptr<Backbone> Any::make(const Options& options) {
  std::shared_ptr<Backbone> out;
  [&]<class... B>(std::tuple<B...>*) {
    const auto make_if_named = [&]<class T>(T*) {
      if (options.name == T::name) out = std::make_shared<T>(typename T::Options{.drop_path = options.drop_path});
    };
    (make_if_named(static_cast<B*>(nullptr)), ...);
  }(static_cast<detail::Known*>(nullptr));
  if (out) return out;
  std::string list;
  for (const std::string& name : names()) list += (list.empty() ? "" : ", ") + name;
  TORCH_CHECK(false, "backbone: there is no '", options.name, "'; known are ", list);
}

}  // namespace moecod::backbone
