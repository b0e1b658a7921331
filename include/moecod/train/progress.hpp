#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace moecod::train {

/// "H:MM:SS" or "M:SS".
inline std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(std::max(0.0, seconds) + 0.5);
  char text[48];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  }
  return text;
}

/// "train [#####-----] 12/24 3.1/s 0:04 left  loss 0.31": one line of at most `width` characters; the bar takes the
/// room that the rest leaves, up to 30 characters, and is dropped where there is none.
inline std::string progress_line(const std::string& label, int64_t done, int64_t total, double seconds,
                                 const std::string& note, std::size_t width) {
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0.0;
  char rate_text[32];
  std::snprintf(rate_text, sizeof rate_text, "%.*f/s", rate < 10 ? 2 : 0, rate);
  std::string text = std::to_string(done) + "/" + std::to_string(total) + " " + rate_text + " ";
  text += done >= total ? "in " + duration_text(seconds)
          : rate > 0    ? duration_text(static_cast<double>(total - done) / rate) + " left"
                        : "";
  if (!note.empty()) text += "  " + note;
  const std::size_t taken = label.size() + text.size() + 4;  // two spaces, two brackets
  if (width >= taken + 5) {
    const std::size_t bar = std::min<std::size_t>(30, width - taken);
    const auto share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0;
    const auto full = static_cast<std::size_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(bar));
    text = "[" + std::string(full, '#') + std::string(bar - full, '-') + "] " + text;
  }
  return (label + " " + text).substr(0, width);
}

/// Progress of a loop, with rate and time left: a line that moves when `out` is a terminal, at most ten times a
/// second; otherwise, as in a log file, a line of its own every `interval` seconds. Both end with a full line.
/// With no `out` it shows nothing. Needs no LibTorch; never throws.
class Progress {
 public:
  Progress(std::string label, int64_t total, std::FILE* out = stderr, double interval = 30)
      : label_(std::move(label)),
        total_(total),
        out_(out),
        terminal_(out != nullptr && ::isatty(::fileno(out)) == 1),
        interval_(terminal_ ? 0.1 : interval),
        start_(Clock::now()),
        shown_(start_) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { finish(note_); }

  /// `done` of the total are done; `note` may hold anything short, such as the loss.
  void update(int64_t done, const std::string& note = "") {
    done_ = done;
    note_ = note;
    const Clock::time_point now = Clock::now();
    if (std::chrono::duration<double>(now - shown_).count() < interval_) return;
    shown_ = now;
    show(!terminal_);
  }

  /// Shows the last state and ends the line; nothing is shown after it.
  void finish(const std::string& note = "") {
    if (finished_) return;
    finished_ = true;
    note_ = note;
    show(true);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void show(bool end_line) {
    if (out_ == nullptr) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const std::string line = progress_line(label_, done_, total_, seconds, note_, terminal_ ? columns() : 200);
    std::fprintf(out_, "%s%s%s", terminal_ ? "\r\x1b[K" : "", line.c_str(), end_line ? "\n" : "");
    std::fflush(out_);
  }

  std::size_t columns() const {
    winsize size{};
    // One column stays free: some terminals wrap when the last one is written.
    return ::ioctl(::fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1u : 79u;
  }

  std::string label_, note_;
  int64_t total_, done_ = 0;
  std::FILE* out_;
  bool terminal_, finished_ = false;
  double interval_;
  Clock::time_point start_, shown_;
};

}  // namespace moecod::train
