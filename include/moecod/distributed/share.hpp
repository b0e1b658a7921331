#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <cstddef>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "moecod/distributed/group.hpp"
#include "moecod/io/checksum.hpp"

namespace moecod::distributed {

/// Errors: c10::Error, on all ranks, naming those that have another `text` than rank 0.
inline void check_same(Group& group, const std::string& what, const std::string& text) {
  const auto mine = static_cast<int64_t>(io::checksum(std::as_bytes(std::span(text))));
  const at::Tensor all = group.gather(at::full({}, mine, at::kLong)).to(at::kCPU).contiguous();
  const int64_t* hash = all.const_data_ptr<int64_t>();
  std::string others;
  for (int64_t r = 1; r < group.world(); ++r)
    if (hash[r] != hash[0]) others += (others.empty() ? "" : ", ") + std::to_string(r);
  TORCH_CHECK(others.empty(), what, " must be the same on all ranks; rank ", others, " differs from rank 0");
}

/// Gives every rank the parameters and buffers of rank 0, in place.
/// Errors: c10::Error, on all ranks, if the models differ in a name, shape, dtype or in what is trained.
inline void share_model(Group& group, torch::nn::Module& model) {
  if (group.world() == 1) return;
  std::vector<at::Tensor> tensors;
  std::ostringstream text;
  for (const auto& items : {model.named_parameters(), model.named_buffers()}) {
    for (const auto& item : items) {
      text << item.key() << item.value().sizes() << item.value().scalar_type() << item.value().requires_grad() << '\n';
      tensors.push_back(item.value());
    }
  }
  check_same(group, "the model's parameters and buffers", text.str());
  group.broadcast(tensors);
}

/// The rows [n, ...] of all ranks together, those of rank 0 first; n may differ between ranks.
inline at::Tensor gather_rows(Group& group, const at::Tensor& rows) {
  if (group.world() == 1) return rows;
  const at::Tensor counts = group.gather(at::full({}, rows.size(0), at::kLong)).to(at::kCPU).contiguous();
  const int64_t* count = counts.const_data_ptr<int64_t>();
  std::vector<int64_t> shape = rows.sizes().vec();
  shape[0] = counts.max().item<int64_t>();
  at::Tensor padded = at::zeros(shape, rows.options());
  padded.slice(0, 0, rows.size(0)).copy_(rows);
  const at::Tensor all = group.gather(padded);
  std::vector<at::Tensor> parts;
  for (int64_t r = 0; r < group.world(); ++r) parts.push_back(all.select(0, r).slice(0, 0, count[r]));
  return at::cat(parts);
}

}  // namespace moecod::distributed
