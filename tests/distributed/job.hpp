#pragma once
#include <ATen/ops/allclose.h>

#include <memory>
#include <utility>
#include <vector>

#include "moecod/distributed/group.hpp"

namespace moecod::test {

/// The processes that run these tests together.
struct Job {
  std::shared_ptr<distributed::Group> group;
  at::Device device = at::kCPU;
};
Job& job();

inline int64_t rank() { return job().group->rank(); }
inline int64_t world() { return job().group->world(); }
inline at::TensorOptions on_device(at::ScalarType type = at::kFloat) {
  return at::TensorOptions(type).device(job().device);
}

/// This rank's rows of a batch that all ranks know.
inline at::Tensor share_of(const at::Tensor& all) {
  const int64_t rows = all.size(0) / world();
  return all.slice(0, rank() * rows, (rank() + 1) * rows);
}

}  // namespace moecod::test
