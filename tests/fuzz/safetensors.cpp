// Whatever the bytes are, the reader gives tensors that lie in the file, or a std::runtime_error.
#include "tests/fuzz/fuzz_input.hpp"

#include "moecod/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const FuzzInput input(data, size);
  try {
    const moecod::io::SafetensorsFile file(input.path());
    unsigned sum = 0;
    for (const auto& tensor : file.tensors()) {
      if (tensor.bytes.size() != moecod::io::safetensors::tensor_bytes(tensor.dtype, tensor.shape)) std::abort();
      for (const std::byte b : tensor.bytes) sum += unsigned(b);  // each byte can be read
    }
    if (sum == ~0u) std::abort();  // so that the sum is needed
  } catch (const std::runtime_error&) {
  }
  return 0;
}
