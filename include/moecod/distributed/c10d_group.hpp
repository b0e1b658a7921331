#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "moecod/core/zero_gradients.hpp"
#include "moecod/distributed/group.hpp"

namespace moecod::distributed {

namespace detail {

/// Those of `parameters` whose gradient a backward pass from `loss` would leave alone.
inline std::vector<at::Tensor> unreached(const at::Tensor& loss, const std::vector<at::Tensor>& parameters) {
  std::unordered_set<const torch::autograd::Node*> seen;
  std::vector<const torch::autograd::Node*> open;
  const auto visit = [&](const torch::autograd::Node* node) {
    if (node != nullptr && seen.insert(node).second) open.push_back(node);
  };
  visit(loss.grad_fn().get());
  while (!open.empty()) {
    const torch::autograd::Node* node = open.back();
    open.pop_back();
    for (const torch::autograd::Edge& edge : node->next_edges()) visit(edge.function.get());
  }
  std::vector<at::Tensor> out;
  for (const at::Tensor& parameter : parameters)
    if (!seen.contains(torch::autograd::impl::grad_accumulator(parameter).get())) out.push_back(parameter);
  return out;
}

/// GradientSync by c10d's Reducer: buckets of 25 MB (the first of 1 MB) in the order in which gradients were ready in the
/// first step, each reduced as soon as it is full; gradients are views of the buckets.
class ReducerSync final : public GradientSync {
 public:
  ReducerSync(const c10::intrusive_ptr<c10d::ProcessGroup>& group, std::vector<at::Tensor> parameters)
      : parameters_(std::move(parameters)) {
    // What is there is added to in place. A gradient that autograd makes anew may have other strides than its parameter
    // where a size is 1 (a depthwise convolution of a channels-last map), of which the Reducer warns.
    for (const at::Tensor& parameter : parameters_)
      if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    const std::vector<size_t> limits{c10d::kDefaultFirstBucketBytes, c10d::kDefaultBucketBytesCap};
    auto [buckets, sizes] = c10d::compute_bucket_assignment_by_size(parameters_, limits);
    // Gradients are ready in about the reverse of the order of the parameters.
    std::reverse(buckets.begin(), buckets.end());
    reducer_ = std::make_unique<c10d::Reducer>(
        parameters_, std::move(buckets), group, std::vector<bool>(parameters_.size(), false),
        /*bucket_bytes_cap=*/c10d::kDefaultBucketBytesCap, /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/true, /*param_names=*/std::unordered_map<size_t, std::string>(),
        /*first_bucket_bytes_cap=*/c10d::kDefaultFirstBucketBytes, /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false, /*bucket_bytes_cap_list=*/std::vector<int64_t>());
    // Divides a whole bucket at once, and always in the same way: without it a gradient that is new to its bucket is
    // multiplied by 1 / world and one that lies there already divided by world, parameter by parameter.
    reducer_->register_builtin_comm_hook(c10d::BuiltinCommHookType::ALLREDUCE);
  }

  void begin_step() override {
    reducer_->prepare_for_forward();
    reducer_->rebuild_buckets();  // also where a reduction of the step before that never ended is found
  }

  at::Tensor last_backward(const at::Tensor& loss) override {
    if (!looked_) unused_ = unreached(loss, parameters_);
    looked_ = true;
    reducer_->prepare_for_backward({});
    return with_zero_gradients(loss, unused_);
  }

 private:
  std::vector<at::Tensor> parameters_, unused_;
  bool looked_ = false;
  std::unique_ptr<c10d::Reducer> reducer_;
};

}  // namespace detail

/// The ranks of a c10d process group. Tensors on another device than the group's are carried by way of it.
class C10dGroup final : public Group {
 public:
  /// `close(failed)` is called in the end, failed if an exception is on its way.
  C10dGroup(c10::intrusive_ptr<c10d::ProcessGroup> group, at::Device device, std::function<void(bool failed)> close)
      : group_(std::move(group)), device_(device), close_(std::move(close)) {}
  C10dGroup(const C10dGroup&) = delete;
  C10dGroup& operator=(const C10dGroup&) = delete;
  ~C10dGroup() override {
    try {
      close_(std::uncaught_exceptions() > 0);
    } catch (...) {  // the process is about to end, and what failed is said by whoever threw first
    }
  }

  int64_t rank() const override { return group_->getRank(); }
  int64_t world() const override { return group_->getSize(); }

  void sum(at::Tensor& tensor) override {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> there{tensor.to(device_).contiguous()};
    group_->allreduce(there)->wait();
    if (!there.front().is_same(tensor)) tensor.copy_(there.front());
  }

  at::Tensor gather(const at::Tensor& tensor) override {
    const at::NoGradGuard no_grad;
    at::Tensor mine = tensor.detach().to(device_).contiguous();
    std::vector<int64_t> shape = mine.sizes().vec();
    shape.insert(shape.begin(), world());
    at::Tensor all = at::empty(shape, mine.options());
    at::Tensor flat = all.flatten(), from = mine.flatten();
    group_->_allgather_base(flat, from)->wait();
    return all.to(tensor.device());
  }

  void broadcast(const std::vector<at::Tensor>& tensors) override {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> there;
    for (const at::Tensor& tensor : tensors) there.push_back(tensor.detach().to(device_));
    c10d::broadcast_coalesced(group_, there, /*buffer_size=*/256 << 20);
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].device() != device_) tensors[i].detach().copy_(there[i]);
  }

  at::Tensor exchange(const at::Tensor& rows, const std::vector<int64_t>& send,
                      const std::vector<int64_t>& receive) override {
    const at::NoGradGuard no_grad;
    at::Tensor from = rows.detach().to(device_).contiguous();
    std::vector<int64_t> shape = from.sizes().vec(), to_send = send, to_receive = receive;
    shape[0] = 0;
    for (const int64_t count : receive) shape[0] += count;
    at::Tensor to = at::empty(shape, from.options());
    group_->alltoall_base(to, from, to_receive, to_send)->wait();
    return to.to(rows.device());
  }

  void barrier() override {
    at::Tensor one = at::empty({1}, at::TensorOptions(at::kLong).device(device_)).zero_();
    sum(one);
    (void)one.item<int64_t>();
  }

  std::unique_ptr<GradientSync> average_gradients(const std::vector<at::Tensor>& parameters) override {
    return std::make_unique<detail::ReducerSync>(group_, parameters);
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  at::Device device_;
  std::function<void(bool failed)> close_;
};

}  // namespace moecod::distributed
