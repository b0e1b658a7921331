#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/loader.hpp"

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

/// Moves a batch to a device as bytes, through pinned memory for CUDA, and makes floats of it there, on the current
/// stream. Synchronises: never.
inline DeviceBatch to_device(data::Batch&& batch, at::Device device) {
  const auto upload = [&](const std::vector<uint8_t>& bytes, at::IntArrayRef shape) {
    const at::Tensor host = at::empty(shape, at::TensorOptions(at::kByte).pinned_memory(device.is_cuda()));
    TORCH_CHECK(std::size_t(host.numel()) == bytes.size(), "to_device: a batch of shape ", shape, " has ", bytes.size(),
                " bytes");
    std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
    return host.to(device, /*non_blocking=*/true);
  };
  const int64_t b = batch.size, h = batch.height, w = batch.width;
  std::array<float, 3> scale{}, shift{};
  for (std::size_t c = 0; c < 3; ++c) {
    scale[c] = 1.0F / (255.0F * kImageNetDeviation[c]);
    shift[c] = kImageNetMean[c] / kImageNetDeviation[c];
  }
  const at::Tensor bytes = upload(batch.images, {b, h, w, 3});
  const at::Tensor images = bytes.new_empty({b, 3, h, w}, at::TensorOptions(at::kFloat));
  for (int64_t c = 0; c < 3; ++c)
    images.select(1, c).copy_(bytes.select(3, c)).mul_(scale[std::size_t(c)]).sub_(shift[std::size_t(c)]);
  DeviceBatch out;
  out.images = images;
  out.masks = upload(batch.masks, {b, 1, h, w}).ge(128).to(at::kFloat);
  out.regimes = std::move(batch.regimes);
  out.indices = std::move(batch.indices);
  out.names = std::move(batch.names);
  out.full_masks = std::move(batch.full_masks);
  return out;
}

}  // namespace moecod::train
