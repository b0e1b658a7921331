#pragma once
#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <mutex>
#include <utility>

namespace moecod {

/// The states of LibTorch's default generators: the CPU's and, for a CUDA device, that device's.
///
/// Shapes: uint8 tensors on the CPU, as torch.get_rng_state() gives them; `cuda` is undefined without such a device.
/// Synchronises: never (the CUDA generator's seed and offset live on the host).
struct RandomState {
  at::Device device = at::kCPU;
  at::Tensor cpu, cuda;

  static RandomState capture(at::Device device) {
    RandomState out{device, read(at::kCPU), {}};
    if (device.is_cuda()) out.cuda = read(device);
    return out;
  }

  /// Errors: c10::Error if a state has another size or type than the generator's.
  void restore() const {
    write(at::kCPU, cpu);
    if (cuda.defined()) write(device, cuda);
  }

 private:
  static at::Tensor read(at::Device device) {
    at::Generator generator = at::globalContext().defaultGenerator(device);
    const std::lock_guard lock(generator.mutex());
    return generator.get_state();
  }
  static void write(at::Device device, const at::Tensor& state) {
    at::Generator generator = at::globalContext().defaultGenerator(device);
    const std::lock_guard lock(generator.mutex());
    generator.set_state(state);
  }
};

/// Puts the generators into `state`, and back into the state they were in when this object's life ends.
class RandomStateGuard {
 public:
  explicit RandomStateGuard(const RandomState& state) : outer_(RandomState::capture(state.device)) { state.restore(); }
  RandomStateGuard(const RandomStateGuard&) = delete;
  RandomStateGuard& operator=(const RandomStateGuard&) = delete;
  ~RandomStateGuard() { outer_.restore(); }

 private:
  RandomState outer_;
};

}  // namespace moecod
