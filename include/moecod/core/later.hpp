#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <functional>
#include <utility>

namespace moecod {

/// A tensor that is computed when it is first asked for, or was given.
///
/// Gradients are recorded if they were when it was made, whoever asks (but not first in c10::InferenceMode). Not for several
/// threads at once; on CUDA to be asked for on the stream on which it was made, or one that waits for it.
class Later {
 public:
  Later() = default;
  Later(at::Tensor value) : value_(std::move(value)) {}
  /// `make` keeps what it needs alive until it has run.
  explicit Later(std::function<at::Tensor()> make) : make_(std::move(make)) {}

  const at::Tensor& operator()() const {
    if (make_) {
      const at::AutoGradMode as_then(records_);
      value_ = make_();
      make_ = nullptr;
    }
    return value_;
  }

 private:
  mutable std::function<at::Tensor()> make_;
  mutable at::Tensor value_;
  bool records_ = at::GradMode::is_enabled();
};

}  // namespace moecod
