#pragma once

#include <c10/core/DeviceType.h>

#include <chrono>
#include <memory>

#include "moecod/distributed/group.hpp"
#include "moecod/distributed/ranks.hpp"

namespace moecod::distributed {

/// The group of the processes that a launcher started: GPUs under torchrun by NCCL (distributed/nccl.hpp), CPUs under
/// mpirun by MPI (distributed/mpi.hpp). Defined in distributed/open.ipp, to be included in one source file of a program
/// that links moecod::distributed; it has the transports that were found when that was configured.
/// Errors: c10::Error for another pair of launcher and device, or a transport that this build lacks; what opening throws.
std::shared_ptr<Group> open_group(const Ranks& ranks, c10::DeviceType device, std::chrono::seconds timeout);

}  // namespace moecod::distributed
