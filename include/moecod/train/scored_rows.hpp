#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <cstdint>
#include <vector>

#include "moecod/distributed/share.hpp"
#include "moecod/moe/monitor.hpp"

namespace moecod::train {

/// Figures of the pictures of a set, of which each rank of a group scores its own share.
class ScoredRows {
 public:
  /// Figures [n, ...] of a batch, and the pictures' indices in the set.
  void add(const at::Tensor& figures, const std::vector<int64_t>& indices) {
    figures_.push_back(figures);
    indices_.insert(indices_.end(), indices.begin(), indices.end());
  }

  /// The figures of all ranks' pictures, in the order of the set: whatever the number of ranks, the same bits.
  /// Errors: c10::Error where a rank has none.
  at::Tensor of_all_ranks(distributed::Group& group) const {
    TORCH_CHECK(!figures_.empty(), "the validation set gave rank ", group.rank(), " of ", group.world(), " no picture");
    const at::Tensor figures = distributed::gather_rows(group, at::cat(figures_));
    const at::Tensor indices = distributed::gather_rows(group, at::tensor(indices_));
    return figures.index_select(0, at::argsort(indices).to(figures.device()));
  }

 private:
  std::vector<at::Tensor> figures_;
  std::vector<int64_t> indices_;
};

/// What a monitor of each rank has seen, together.
inline Monitor gathered(const Monitor& monitor, distributed::Group& group) {
  return monitor.gathered([&](const at::Tensor& rows) { return distributed::gather_rows(group, rows); });
}

}  // namespace moecod::train
