#pragma once
// The definition of open_group; to be included in exactly one source file of a program.
#include "moecod/distributed/open.hpp"
#ifdef MOECOD_WITH_MPI
#include "moecod/distributed/mpi.hpp"
#endif
#ifdef USE_C10D_NCCL
#include "moecod/distributed/nccl.hpp"
#endif

namespace moecod::distributed {

std::shared_ptr<Group> open_group(const Ranks& ranks, c10::DeviceType device, std::chrono::seconds timeout) {
  if (ranks.launcher == Ranks::Launcher::mpirun) {
    TORCH_CHECK(device == c10::DeviceType::CPU, "mpirun starts processes for CPUs; start those for GPUs with torchrun");
#ifdef MOECOD_WITH_MPI
    return open_mpi_group();
#else
    TORCH_CHECK(false, "started by mpirun, but this build has no MPI: install libopenmpi-dev and configure anew");
#endif
  }
  TORCH_CHECK(device == c10::DeviceType::CUDA, "torchrun starts processes for GPUs; start those for CPUs with mpirun");
#ifdef USE_C10D_NCCL
  return open_nccl_group(ranks, timeout);
#else
  (void)timeout;
  TORCH_CHECK(false, "started by torchrun, but this build has no NCCL: configure with -DMOECOD_WITH_CUDA=ON");
#endif
}

}  // namespace moecod::distributed
