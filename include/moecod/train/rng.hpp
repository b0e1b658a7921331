#pragma once
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "moecod/core/random_state.hpp"
#include "moecod/core/state.hpp"

namespace moecod::train {

/// Seeds LibTorch's default generators of the CPU and of every GPU. Ranks of one job get streams of their own.
inline void seed_generators(uint64_t seed, int64_t rank = 0) {
  // SplitMix64's increment: neighbouring seeds and ranks do not meet.
  at::manual_seed(seed + 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(rank));
}

/// The default generators' states as named tensors for a checkpoint: `cpu` and, for a CUDA device, `cuda`.
inline StateDict random_state(at::Device device) {
  const RandomState state = RandomState::capture(device);
  StateDict out{{"cpu", state.cpu}};
  if (state.cuda.defined()) out.emplace_back("cuda", state.cuda);
  return out;
}

/// Puts the default generators into a random_state(). A state that was saved on another kind of device sets the
/// generators that it has, so a run may move between a GPU and the CPU, not bit for bit.
/// Errors: c10::Error if `cpu` is missing or a state does not fit its generator.
inline void set_random_state(const StateDict& saved, at::Device device) {
  RandomState state{device, {}, {}};
  for (const auto& [name, tensor] : saved) {
    if (name == "cpu") state.cpu = tensor.clone();
    if (name == "cuda" && device.is_cuda()) state.cuda = tensor.clone();
  }
  TORCH_CHECK(state.cpu.defined(), "set_random_state: expected the state of the CPU's generator under 'cpu'");
  state.restore();
}

}  // namespace moecod::train
