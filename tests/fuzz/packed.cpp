// Whatever the bytes are, a packed data set gives pictures of its size, or a std::runtime_error.
#include "tests/fuzz/fuzz_input.hpp"

#include <algorithm>

#include "moecod/data/packed.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const FuzzInput input(data, size);
  try {
    const moecod::data::Packed packed(input.path());
    for (int64_t i = 0; i < std::min<int64_t>(packed.size(), 4); ++i) {
      try {
        const moecod::data::Sample sample = packed.sample(0, i);
        if (sample.mask.pixels.size() != std::size_t(packed.height() * packed.width())) std::abort();
      } catch (const moecod::data::bad_sample&) {
      }
    }
  } catch (const std::runtime_error&) {
  }
  return 0;
}
