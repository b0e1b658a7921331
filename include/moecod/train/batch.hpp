#pragma once
#include <ATen/ops/from_blob.h>

#include <memory>
#include <utility>
#include <vector>

#include "moecod/data/loader.hpp"

namespace moecod::train {

/// A loader's batch on a device: images [B, 3, H, W] and masks [B, 1, H, W] float32.
struct DeviceBatch {
  at::Tensor images, masks;
  std::vector<int64_t> regimes, indices;
  std::vector<std::string> names;
  std::vector<Image> full_masks;
};

/// Moves a batch to a device; on the CPU the tensors take over the batch's buffers. Synchronises: the upload.
inline DeviceBatch to_device(data::Batch&& batch, at::Device device) {
  const auto tensor = [&](std::vector<float>& values, int64_t channels) {
    auto* owner = new std::vector<float>(std::move(values));
    return at::from_blob(owner->data(), {batch.size, channels, batch.height, batch.width},
                         [owner](void*) { delete owner; }, at::TensorOptions(at::kFloat))
        .to(device);
  };
  DeviceBatch out;
  out.images = tensor(batch.images, 3);
  out.masks = tensor(batch.masks, 1);
  out.regimes = std::move(batch.regimes);
  out.indices = std::move(batch.indices);
  out.names = std::move(batch.names);
  out.full_masks = std::move(batch.full_masks);
  return out;
}

}  // namespace moecod::train
