#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <cstdint>
#include <optional>

namespace moecod::train {

/// A number of every step that is read one step late, so that reading it waits for work of the step before and never
/// for what has just been queued.
///
///     loss.push(of this step);   if (const auto value = loss.before()) show(*value of the step before);
///
/// On CUDA push() copies into pinned memory behind the work queued so far and marks the place with an event; before()
/// waits for the event of the value before the last. On the CPU there is nothing to wait for, but the value is as late.
/// Synchronises: push never; before with the previous push.
class LateScalar {
 public:
  explicit LateScalar(at::Device device) : device_(device) {}

  /// value: one floating-point number on the device. Errors: c10::Error for another number of elements.
  void push(const at::Tensor& value) {
    TORCH_CHECK(value.numel() == 1, "LateScalar: expected one number, got ", value.sizes());
    Slot& slot = slots_[pushed_++ % 2];
    if (!slot.host.defined())
      slot.host = at::empty({}, at::TensorOptions(at::kDouble).pinned_memory(device_.is_cuda()));
    slot.host.copy_(value.detach().reshape({}).to(at::kDouble), /*non_blocking=*/device_.is_cuda());
    if (!device_.is_cuda()) return;
    if (!slot.done) slot.done.emplace(device_.type());
    slot.done->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }

  /// The value pushed before the last one; nothing where there is none.
  std::optional<double> before() {
    if (pushed_ < 2) return std::nullopt;
    return read(slots_[pushed_ % 2]);
  }

  /// The value pushed last; nothing where there is none. Synchronises: with that push.
  std::optional<double> last() {
    if (pushed_ < 1) return std::nullopt;
    return read(slots_[(pushed_ + 1) % 2]);
  }

 private:
  struct Slot {
    at::Tensor host;
    std::optional<c10::Event> done;
  };

  static double read(Slot& slot) {
    if (slot.done) slot.done->synchronize();
    return *slot.host.const_data_ptr<double>();
  }

  at::Device device_;
  std::array<Slot, 2> slots_;
  int64_t pushed_ = 0;
};

}  // namespace moecod::train
