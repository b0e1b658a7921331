#pragma once
#include <c10/util/Exception.h>

#include <cstdint>

namespace moecod::expert {

/// Options of the small experts on one level of a pyramid.
struct FeatureOptions {
  int64_t channels = 64;  ///< C, a multiple of 4; set by the model
};

/// C / 4. Errors: c10::Error that starts with `owner` if C is not a positive multiple of 4.
inline int64_t quarter_of(const char* owner, const FeatureOptions& options) {
  TORCH_CHECK(options.channels > 0 && options.channels % 4 == 0, owner,
              ": channels must be a positive multiple of 4, got ", options.channels);
  return options.channels / 4;
}

}  // namespace moecod::expert
