#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>

namespace moecod {

/// A tensor that is computed when it is first asked for, or was given. Not for several threads at once.
class Later {
 public:
  Later() = default;
  Later(at::Tensor value) : value_(std::move(value)) {}
  /// `make` keeps what it needs alive until it has run.
  explicit Later(std::function<at::Tensor()> make) : make_(std::move(make)) {}

  const at::Tensor& operator()() const {
    if (make_) value_ = std::exchange(make_, nullptr)();
    return value_;
  }

 private:
  mutable std::function<at::Tensor()> make_;
  mutable at::Tensor value_;
};

}  // namespace moecod
