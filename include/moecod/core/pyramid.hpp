#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <tuple>
#include <vector>

namespace moecod {

/// Feature maps of one batch of images, finest first: level i is [B, C_i, H_i, W_i].
using Pyramid = std::vector<at::Tensor>;

/// A backbone as others may call it: images [B, 3, H, W] -> Pyramid.
using Encoder = std::function<Pyramid(const at::Tensor&)>;

/// What a model-level expert may look at.
///
/// `image` [B, 3, H, W], normalised; `pyramid` of the shared backbone on it. `encode` is that backbone itself, for
/// experts that look at the image at other scales; it is a handle that owns nothing, is never registered as a
/// submodule, and outlives the forward pass only.
struct Scene {
  at::Tensor image;
  Pyramid pyramid;
  const Encoder* encode = nullptr;

  static constexpr auto members = std::make_tuple(&Scene::image, &Scene::pyramid);
};

/// A pyramid with the size of the image it was made from: the input of decoders that do not read the pixels.
struct Levels {
  Pyramid pyramid;
  int64_t height = 0, width = 0;

  static constexpr auto members = std::make_tuple(&Levels::pyramid);
  static Levels of(const Scene& scene) { return {scene.pyramid, scene.image.size(2), scene.image.size(3)}; }
};

}  // namespace moecod
