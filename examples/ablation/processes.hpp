#pragma once
// Runs tasks side by side, each in a process of its own, so that one that fails or is killed leaves the others alone.

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace moecod::examples::ablation {

/// Calls tasks[i]() for every i, at most `at_once` at a time and begun in order, each in a child process, whose exit
/// status is what it returns, or 1 if it throws; `ended(i, status)` in this process when one is done. The status of a
/// child that a signal ended is 128 + the signal. Children die with this process, so that none goes on writing behind a
/// restart. Call it before this process starts threads. Errors: std::system_error.
inline void run_in_processes(const std::vector<std::function<int()>>& tasks, int64_t at_once,
                             const std::function<void(std::size_t, int)>& ended) {
  std::map<pid_t, std::size_t> running;
  std::size_t next = 0;
  const pid_t parent = ::getpid();
  const auto fail = [](const char* what) { throw std::system_error(errno, std::generic_category(), what); };
  while (next < tasks.size() || !running.empty()) {
    if (next < tasks.size() && int64_t(running.size()) < at_once) {
      std::fflush(nullptr);
      const pid_t child = ::fork();
      if (child < 0) fail("fork");
      if (child == 0) {
        int status = 1;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() == parent) {  // else it died before the line above
          try {
            status = tasks[next]();
          } catch (...) {
          }
        }
        std::fflush(nullptr);
        ::_exit(status);  // nothing of the parent is torn down twice
      }
      running[child] = next++;
      continue;
    }
    int status = 0;
    const pid_t child = ::waitpid(-1, &status, 0);
    if (child < 0 && errno == EINTR) continue;
    if (child < 0) fail("waitpid");
    const auto found = running.find(child);
    if (found == running.end()) continue;
    const std::size_t index = found->second;
    running.erase(found);
    ended(index, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  }
}

}  // namespace moecod::examples::ablation
