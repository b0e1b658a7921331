#include "moecod/backbone/pvt_v2.hpp"

#include "examples/ablation/rows.hpp"

namespace moecod::examples::ablation {

static_assert(decltype(hana::length(rows))::value == MOECOD_ABLATION_COUNT,
              "moecod: CMake counted another number of rows in rows.def than rows.hpp makes of it");

std::shared_ptr<backbone::Backbone> PvtV2B0::make(const Options&) { return std::make_shared<backbone::PvtV2B0>(); }

}  // namespace moecod::examples::ablation
