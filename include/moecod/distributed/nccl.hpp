#pragma once
#ifndef USE_C10D_NCCL
#error "moecod/distributed/nccl.hpp needs NCCL's header and -DUSE_C10D_NCCL: link moecod::distributed"
#endif
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include "moecod/distributed/c10d_group.hpp"
#include "moecod/distributed/ranks.hpp"

namespace moecod::distributed {

/// The processes that torchrun started, a GPU each: the one of their local rank, which becomes the current device.
///
/// A call that the other ranks do not answer within `timeout` ends this process (NCCL's watchdog aborts it), and so the
/// job. Errors: std::runtime_error or c10::Error when the store is not reached in that time or the GPU is missing.
inline std::shared_ptr<Group> open_nccl_group(const Ranks& ranks, std::chrono::seconds timeout) {
  TORCH_CHECK(ranks.local_rank < c10::cuda::device_count(), "LOCAL_RANK is ", ranks.local_rank, ", but this machine has ",
              int(c10::cuda::device_count()), " GPUs");
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(ranks.local_rank));
  c10::cuda::set_device(device.index());

  // A rank that times out tells all to dump what they did last, by a word in the store that a job which is started anew
  // still finds there, and then waits for itself in the end. Set the variable to 1 to debug a hanging job all the same.
  ::setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", /*overwrite=*/0);

  c10d::TCPStoreOptions where;
  where.port = static_cast<std::uint16_t>(ranks.master_port);
  where.isServer = !ranks.agent_store && ranks.rank == 0;
  where.numWorkers = static_cast<std::size_t>(ranks.world);
  where.waitWorkers = false;
  where.timeout = timeout;
  c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::TCPStore>(ranks.master_address, where);
  // The agent's store outlives a restart of the job, whose ranks must not read what the dead ones wrote. (PyTorch does the
  // same: where agents of several machines count restarts differently, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps both.)
  if (ranks.agent_store)
    store = c10::make_intrusive<c10d::PrefixStore>("moecod/start_" + std::to_string(ranks.restart), store);

  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  const int rank = int(ranks.rank), world = int(ranks.world);
  const auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, world, options);
  const auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, world);
  group->setBackend(at::kCUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
  group->setBoundDeviceId(device);
  return std::make_shared<C10dGroup>(group, device, [backend](bool failed) {
    if (failed) {
      backend->abort();
    } else {
      backend->shutdown();
    }
  });
}

}  // namespace moecod::distributed
