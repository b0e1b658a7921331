#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/sigmoid.h>

#include "moecod/io/image.hpp"
#include "moecod/layers/resize.hpp"

namespace moecod::io {

/// One map of logits as a picture of probabilities, 0 to 255 rounded to the nearest, at height x width.
/// logits [H, W], any device, float32. Synchronises: copies to the host.
inline Image map_image(const at::Tensor& logits, int64_t height, int64_t width) {
  TORCH_CHECK(logits.dim() == 2, "map_image: logits must be [H, W], got ", logits.sizes());
  const at::Tensor sized =
      layers::resize(logits.detach().to(at::kFloat).unsqueeze(0).unsqueeze(0), height, width);
  const at::Tensor bytes = (at::sigmoid(sized) * 255).round().to(at::kCPU, at::kByte).contiguous();
  Image out(height, width, 1);
  const uint8_t* from = bytes.const_data_ptr<uint8_t>();
  out.pixels.assign(from, from + bytes.numel());
  return out;
}

}  // namespace moecod::io
