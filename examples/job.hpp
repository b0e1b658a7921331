#pragma once
// Where a trainer runs: one process, or one of those that torchrun or mpirun started.

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "examples/device.hpp"
#include "moecod/core/device_graph.hpp"
#include "moecod/core/options.hpp"
#include "moecod/distributed/open.hpp"
#include "moecod/train/checkpoint.hpp"
#include "moecod/train/trainer_options.hpp"
#ifdef MOECOD_WITH_CUDA
#include "moecod/cuda/graph_recorder.hpp"
#endif

namespace moecod::examples {

struct JobOptions {
  std::string device = "auto";
  bool use_ddp = false;
  int64_t ddp_timeout = 600;
  bool cuda_graphs = true;

  static constexpr auto options = std::make_tuple(
      option(&JobOptions::device, "device", "where to train", choices("auto", "cpu", "cuda")),
      option(&JobOptions::use_ddp, "use-ddp", "one of several processes: on GPUs under torchrun, on CPUs under mpirun"),
      option(&JobOptions::ddp_timeout, "ddp-timeout",
             "seconds after which a rank that the others do not answer gives up (NCCL)", at_least(1)),
      option(&JobOptions::cuda_graphs, "cuda-graphs",
             "on a GPU replay the passes of backbone, router and experts as CUDA graphs"));
};

struct Job {
  std::shared_ptr<distributed::Group> group = std::make_shared<distributed::Alone>();
  at::Device device = at::kCPU;
  /// On a GPU the calling thread works on a stream of its own while this lives, since the default one cannot be recorded.
  std::shared_ptr<c10::StreamGuard> stream = nullptr;
  std::shared_ptr<GraphRecorder> recorder = nullptr;  ///< for replay_graphs; null where there is nothing to record

  bool writes() const { return group->rank() == 0; }  ///< files and terminal are rank 0's
};

/// Gives the job its stream and its recorder.
inline Job on_stream(Job job, [[maybe_unused]] const JobOptions& options) {
  if (!job.device.is_cuda()) return job;
  const c10::impl::VirtualGuardImpl device(c10::DeviceType::CUDA);
  job.stream = std::make_shared<c10::StreamGuard>(device.getStreamFromGlobalPool(job.device));
#ifdef MOECOD_WITH_CUDA
  if (options.cuda_graphs) job.recorder = std::make_shared<cuda::GraphRecorder>();
#endif
  return job;
}

/// Joins the other processes. Those of rank > 0 say nothing on standard output from here on.
/// Errors: c10::Error if --use-ddp and the launcher do not agree; what distributed::open_group throws.
inline Job open_job(const JobOptions& options) {
  const std::optional<distributed::Ranks> ranks = distributed::Ranks::from_environment();
  if (!options.use_ddp) {
    TORCH_CHECK(!ranks || ranks->world == 1, "a launcher started ", ranks->world, " processes: they need --use-ddp");
    return on_stream({.device = device_named(options.device)}, options);
  }
  TORCH_CHECK(ranks, "--use-ddp: no launcher started this process; on GPUs use torchrun, on CPUs mpirun");
  const bool torchrun = ranks->launcher == distributed::Ranks::Launcher::torchrun;
  const bool cuda = options.device == "cuda" || (options.device == "auto" && torchrun);
  Job job;
  job.group = distributed::open_group(*ranks, cuda ? c10::DeviceType::CUDA : c10::DeviceType::CPU,
                                      std::chrono::seconds(options.ddp_timeout));
  if (cuda) job.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(ranks->local_rank));
  if (!job.writes()) std::cout.setstate(std::ios_base::failbit);
  return on_stream(std::move(job), options);
}

/// The job's recorder, or none, which is said, where passes wait for other ranks or run in several threads.
inline std::shared_ptr<GraphRecorder> recorder_for(const Job& job, const train::TrainerOptions& options) {
  if (!job.recorder || (!options.sync_bn && options.replicas == 1)) return job.recorder;
  std::cout << "no CUDA graphs with " << (options.sync_bn ? "--sync-bn" : "--replicas") << std::endl;
  return nullptr;
}

/// The checkpoint under a stem, read by rank 0 first: reading finishes a save that was cut off.
inline train::Checkpoint load_checkpoint(const Job& job, const std::string& stem) {
  if (!job.writes()) job.group->barrier();
  train::Checkpoint out = train::load_checkpoint(stem);
  if (job.writes()) job.group->barrier();
  return out;
}

/// "PROGRAM: " or, of several processes, "PROGRAM: rank 1: ", to begin an error with.
inline std::string error_prefix(const std::string& program) {
  try {
    const std::optional<distributed::Ranks> ranks = distributed::Ranks::from_environment();
    if (ranks && ranks->world > 1) return program + ": rank " + std::to_string(ranks->rank) + ": ";
  } catch (const std::exception&) {  // is what the error is about
  }
  return program + ": ";
}

/// Writes "PROGRAM: rank 1: ..." and an end of line to standard error, in one piece: other ranks write there too.
inline void report_error(const std::string& program, const std::string& what) {
  const std::string line = error_prefix(program) + what + '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace moecod::examples
