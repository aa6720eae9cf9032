#include "lib/core/stop_signal.h"

#include <csignal>
#include <ctime>

#include <atomic>
#include <cstdint>

namespace dstrain {

namespace {

std::atomic<std::int64_t> first{0};  // nanoseconds of the monotonic clock; 0: none
std::atomic<bool> second{false}, terminate{false};
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "for a signal's handler");

std::int64_t monotonic() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec + 1;
}

void handle(int number) {
  const std::int64_t now = monotonic();
  std::int64_t none = 0;
  if (number == SIGTERM) terminate.store(true);
  if (first.compare_exchange_strong(none, now)) return;
  if (static_cast<double>(now - none) * 1e-9 >= StopSignal::kSame) second.store(true);
}

}  // namespace

StopSignal::StopSignal() {
  first = 0;
  second = false;
  terminate = false;
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

StopSignal::~StopSignal() {
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGUSR1, SIG_DFL);
}

bool StopSignal::received() const { return first != 0; }
bool StopSignal::again() const { return second; }
bool StopSignal::terminated() const { return terminate; }
double StopSignal::since_first() const { return received() ? static_cast<double>(monotonic() - first) * 1e-9 : 0.0; }

}  // namespace dstrain
