#pragma once

#include <csignal>
#include <stdexcept>

namespace moecod::train {

/// SIGTERM as a wish to stop soon: a cluster sends it before it takes the machine away.
///
/// The handler is there from the first object on and stays; requested() is true once the signal has come. What trains
/// asks between steps, saves, and throws Stopped.
class StopSignal {
 public:
  StopSignal() {
    struct sigaction action {};
    action.sa_handler = [](int) { requested_ = 1; };
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, nullptr);
  }

  bool requested() const { return requested_ != 0; }

  /// Forgets a signal that has been answered.
  void clear() { requested_ = 0; }

 private:
  static inline volatile std::sig_atomic_t requested_ = 0;
};

/// A run that was asked to stop and has saved what it needs to go on.
struct Stopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The exit status of a program that ended by Stopped: EX_TEMPFAIL, "try again".
inline constexpr int stopped_exit_status = 75;

}  // namespace moecod::train
