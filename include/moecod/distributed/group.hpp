#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace moecod::distributed {

/// Replaces each rank's gradients by their mean over the ranks, while the backward pass is still running.
///
///     every optimizer step:
///       sync.begin_step();
///       for each micro-batch but the last:  loss.backward();
///       sync.last_backward(loss).backward();          // gradients are the means when this returns
class GradientSync {
 public:
  virtual ~GradientSync() = default;

  /// Before the first forward pass of an optimizer step, with all gradients zero.
  virtual void begin_step() = 0;

  /// The tensor to call backward() on in place of `loss`, the last one of an optimizer step: its backward pass reduces
  /// the gradients. Parameters that the graph of the first such loss does not reach get zeros in every later one.
  virtual at::Tensor last_backward(const at::Tensor& loss) = 0;
};

/// The processes that train one model together, one device each. Every rank must make the same calls in the same
/// order; a call returns when its result may be used (on CUDA: on the current stream, without waiting for the device).
///
/// Errors: c10::Error on a tensor whose type the transport does not carry, and when another rank has failed.
class Group {
 public:
  virtual ~Group() = default;

  virtual int64_t rank() const = 0;   ///< 0 .. world() - 1
  virtual int64_t world() const = 0;  ///< ranks

  /// Replaces a contiguous tensor by its sum over the ranks.
  virtual void sum(at::Tensor& tensor) = 0;

  /// The ranks' tensors of one shape and dtype, stacked in the order of the ranks: [...] -> [world, ...].
  virtual at::Tensor gather(const at::Tensor& tensor) = 0;

  /// Overwrites tensors of rank r > 0 by those of rank 0, in place.
  virtual void broadcast(const std::vector<at::Tensor>& tensors) = 0;

  /// Rows to and from every rank: `rows` [sum of send, ...] holds send[r] rows for rank r, in the order of the ranks; the
  /// result [sum of receive, ...] holds receive[r] rows of each.
  virtual at::Tensor exchange(const at::Tensor& rows, const std::vector<int64_t>& send,
                              const std::vector<int64_t>& receive) = 0;

  /// Returns when all ranks have called it. Synchronises.
  virtual void barrier() = 0;

  /// For the trainable parameters listed, which must be the same on all ranks, and for as long as it lives.
  virtual std::unique_ptr<GradientSync> average_gradients(const std::vector<at::Tensor>& parameters) = 0;
};

/// A single process.
class Alone final : public Group {
 public:
  int64_t rank() const override { return 0; }
  int64_t world() const override { return 1; }
  void sum(at::Tensor&) override {}
  at::Tensor gather(const at::Tensor& tensor) override { return tensor.unsqueeze(0); }
  void broadcast(const std::vector<at::Tensor>&) override {}
  at::Tensor exchange(const at::Tensor& rows, const std::vector<int64_t>&, const std::vector<int64_t>&) override {
    return rows;
  }
  void barrier() override {}
  std::unique_ptr<GradientSync> average_gradients(const std::vector<at::Tensor>&) override {
    struct Nothing final : GradientSync {
      void begin_step() override {}
      at::Tensor last_backward(const at::Tensor& loss) override { return loss; }
    };
    return std::make_unique<Nothing>();
  }
};

}  // namespace moecod::distributed
