#pragma once
// The dense random field's flags, for the programs that finish maps with it. Needs no LibTorch.

#include <CLI/CLI.hpp>

#include "moecod/post/crf.hpp"
#include "moecod/post/filter/pairwise.hpp"
#include "moecod/train/flags.hpp"

namespace moecod::examples {

struct CrfFlags {
  bool on = false;
  bool exact = false;
  post::CrfOptions options;

  /// The map of a picture as it is, or finished.
  Image finish(const Image& rgb, Image map) const {
    if (!on) return map;
    return exact ? post::crf<post::filter::Pairwise<5>>(rgb, map, options) : post::crf(rgb, map, options);
  }
};

/// --crf, --crf-exact and one flag for each parameter; those need --crf.
inline CLI::Option* add_crf_flags(CLI::App& app, CrfFlags& flags) {
  CLI::Option* crf = app.add_flag("--crf", flags.on, "finish the maps with a dense random field over their pictures");
  app.add_flag("--crf-exact", flags.exact, "pair by pair instead of by a lattice: slow, for small pictures")->needs(crf);
  train::add_flags(app, flags.options);
  for_each_option(flags.options, [&](const std::string& flag, auto&&...) { app.get_option("--" + flag)->needs(crf); });
  return crf;
}

}  // namespace moecod::examples
