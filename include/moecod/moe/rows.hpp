#pragma once
#include <ATen/core/Tensor.h>

#include "moecod/core/tree.hpp"

/// What a mixture routes: images (whatever the leading dimension counts) or positions of feature maps.
///
/// A router names what it decides for (`granularity`), an expert what it takes (`rows`).
namespace moecod::rows {

/// One row is one entry of the leading dimension.
struct Images {};

/// One row is one position of one image: [B, C, H, W] holds B*H*W rows, [N, C] holds N.
struct Positions {};

/// [B, C, H, W] -> [B*H*W, C]; [N, C] stays.
inline at::Tensor to_positions(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4 || x.dim() == 2, "routing by position: expected [B, C, H, W] or [N, C], got ", x.sizes());
  return x.dim() == 2 ? x : x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
}

/// [B*H*W, C'] -> [B, C', H, W] for the B, H, W of `like`; [N, C'] stays when `like` is [N, C].
inline at::Tensor from_positions(const at::Tensor& y, const at::Tensor& like) {
  if (like.dim() == 2) return y;
  return y.view({like.size(0), like.size(2), like.size(3), y.size(1)}).permute({0, 3, 1, 2});
}

}  // namespace moecod::rows
