#pragma once
#include <ATen/TensorOperators.h>

#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moecod/data/loader.hpp"
#include "moecod/train/augment.hpp"
#include "moecod/train/upload.hpp"

namespace moecod::train {

/// ImageNet's colour statistics, of values scaled to 0..1.
inline constexpr std::array<float, 3> kImageNetMean{0.485F, 0.456F, 0.406F};
inline constexpr std::array<float, 3> kImageNetDeviation{0.229F, 0.224F, 0.225F};

/// A loader's batch on a device: images [B, 3, H, W], normalised with ImageNet's mean and deviation, and masks
/// [B, 1, H, W], 0 or 1, float32.
struct DeviceBatch {
  at::Tensor images, masks;
  std::vector<int64_t> regimes, indices;
  std::vector<std::string> names;
  std::vector<Image> full_masks;
};

/// Moves a batch to a device as bytes, through pinned memory for CUDA, does there what the loader has left to be done
/// (train/augment.hpp), and makes the floats of it; on the current stream. Synchronises: never.
inline DeviceBatch to_device(data::Batch&& batch, at::Device device) {
  const int64_t b = batch.size, h = batch.height, w = batch.width;
  at::Tensor images = upload(batch.images, {b, h, w, 3}, device)
                          .permute({0, 3, 1, 2})
                          .to(at::kFloat, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous);
  at::Tensor masks = upload(batch.masks, {b, 1, h, w}, device);
  if (!batch.draws.empty()) std::tie(images, masks) = augmented(images, masks.to(at::kFloat), batch.draws);
  for (int64_t c = 0; c < 3; ++c) {
    const auto i = static_cast<std::size_t>(c);
    images.select(1, c).mul_(1.0F / (255.0F * kImageNetDeviation[i])).sub_(kImageNetMean[i] / kImageNetDeviation[i]);
  }
  DeviceBatch out;
  out.images = images;
  out.masks = masks.ge(128).to(at::kFloat);
  out.regimes = std::move(batch.regimes);
  out.indices = std::move(batch.indices);
  out.names = std::move(batch.names);
  out.full_masks = std::move(batch.full_masks);
  return out;
}

}  // namespace moecod::train
