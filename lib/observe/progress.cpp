#include "lib/observe/progress.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "lib/core/errors.h"

namespace dstrain {

namespace {
constexpr double kPlainInterval = 5;  // seconds between lines when the output is no terminal

void put(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}
}  // namespace

std::string human_count(double v) {
  const char* units[] = {"", "k", "M", "G", "T", "P", "E"};
  int u = 0;
  while (std::fabs(v) >= 1000 && u < 6) v /= 1000, ++u;
  return u == 0 ? format("{:.0f}", v) : format("{:.3g}{}", v, units[u]);
}

std::string human_bytes(double v) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  while (std::fabs(v) >= 1024 && u < 4) v /= 1024, ++u;
  return u == 0 ? format("{:.0f} B", v) : format("{:.1f} {}", v, units[u]);
}

std::string human_seconds(double v) {
  if (v < 60) return format("{:.1f}s", v);
  const auto s = static_cast<std::int64_t>(v + 0.5);
  if (s < 3600) return format("{}m{:02}s", s / 60, s % 60);
  return format("{}h{:02}m", s / 3600, s / 60 % 60);
}

std::string progress_line(const StepRecord& r, std::int64_t steps, double eta, std::size_t memory) {
  return format("step {}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {} tok/s  mfu {:.1f}%  eta {}  mem {}", r.step, steps,
                r.loss, r.grad_norm, r.lr, human_count(r.tokens_per_second), 100 * r.mfu, human_seconds(eta),
                human_bytes(static_cast<double>(memory)));
}

Progress::Progress(bool enabled, bool in_place, const Clock& clock, std::int64_t steps, std::size_t memory_bytes)
    : enabled_(enabled),
      terminal_(in_place && isatty(STDOUT_FILENO) == 1),
      clock_(clock),
      steps_(steps),
      memory_bytes_(memory_bytes),
      last_print_(clock.now() - kPlainInterval) {}

Progress::~Progress() { end_line(); }

void Progress::end_line() {
  if (open_line_) put("\n");
  open_line_ = false;
}

void Progress::step(const StepRecord& record) {
  if (!enabled_) return;
  smoothed_ = smoothed_ == 0 ? record.seconds : 0.9 * smoothed_ + 0.1 * record.seconds;
  const double now = clock_.now();
  if (!terminal_ && now - last_print_ < kPlainInterval && record.step != steps_) return;
  last_print_ = now;
  const std::string line =
      progress_line(record, steps_, smoothed_ * static_cast<double>(steps_ - record.step), memory_bytes_);
  put(terminal_ ? "\r\033[K" + line : line + "\n");
  open_line_ = terminal_;
}

void Progress::message(const std::string& text) {
  if (!enabled_) return;
  put((open_line_ ? "\r\033[K" : "") + text + "\n");
  open_line_ = false;
}

}  // namespace dstrain
