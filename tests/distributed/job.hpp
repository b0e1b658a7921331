#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <torch/nn/module.h>

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

/// |a - b| / |b|.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).to(at::kDouble).norm().item<double>() / (1e-6 + b.to(at::kDouble).norm().item<double>());
}

/// A step of gradient descent; the gradients are zero behind it.
inline void descend(torch::nn::Module& model) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& p : model.parameters()) {
    if (!p.grad().defined()) continue;
    p.sub_(p.grad(), 0.05);
    p.mutable_grad().zero_();
  }
}

}  // namespace moecod::test
