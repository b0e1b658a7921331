#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

namespace moecod::distributed {

/// Which of a job's processes this one is, as its launcher says in environment variables.
///
/// torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and TORCHELASTIC_USE_AGENT_STORE where its
/// own process keeps the store; mpirun of OpenMPI sets OMPI_COMM_WORLD_RANK, _SIZE and _LOCAL_RANK. Needs no LibTorch.
struct Ranks {
  enum class Launcher { torchrun, mpirun };

  Launcher launcher = Launcher::torchrun;
  int64_t rank = 0;        // 0 .. world - 1
  int64_t world = 1;       // processes of the job
  int64_t local_rank = 0;  // among those of this machine: which GPU it takes
  std::string master_address;  // torchrun: where the store is
  int64_t master_port = 0;
  bool agent_store = false;    // torchrun: its own process serves the store; else rank 0 does
  int64_t restart = 0;         // torchrun: how often the job was started before

  /// What the environment says; nothing where no launcher started this process.
  /// Errors: std::runtime_error naming the variable that is missing, or is no number in its range.
  static std::optional<Ranks> from_environment() {
    Ranks out;
    if (std::getenv("WORLD_SIZE") != nullptr) {
      out.world = number("WORLD_SIZE", 1, 1 << 20);
      out.rank = number("RANK", 0, out.world - 1);
      out.local_rank = number("LOCAL_RANK", 0, out.world - 1);
      out.master_address = text("MASTER_ADDR");
      out.master_port = number("MASTER_PORT", 1, 65535);
      const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
      out.agent_store = agent != nullptr && std::strcmp(agent, "True") == 0;
      if (std::getenv("TORCHELASTIC_RESTART_COUNT") != nullptr)
        out.restart = number("TORCHELASTIC_RESTART_COUNT", 0, 1 << 30);
      return out;
    }
    if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) {
      out.launcher = Launcher::mpirun;
      out.world = number("OMPI_COMM_WORLD_SIZE", 1, 1 << 20);
      out.rank = number("OMPI_COMM_WORLD_RANK", 0, out.world - 1);
      out.local_rank = number("OMPI_COMM_WORLD_LOCAL_RANK", 0, out.world - 1);
      return out;
    }
    return std::nullopt;
  }

 private:
  static std::string text(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0')
      throw std::runtime_error(std::string(name) + " is missing from the environment, which has WORLD_SIZE");
    return value;
  }

  static int64_t number(const char* name, int64_t least, int64_t most) {
    const std::string value = text(name);
    int64_t out = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (error != std::errc() || end != value.data() + value.size() || out < least || out > most)
      throw std::runtime_error("the environment's " + std::string(name) + ": expected a number from " +
                               std::to_string(least) + " to " + std::to_string(most) + ", got '" + value + "'");
    return out;
  }
};

}  // namespace moecod::distributed
