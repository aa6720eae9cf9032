#include "lib/train/run_watch.h"

#include <algorithm>
#include <numeric>

namespace dstrain {

namespace {
constexpr double kShortest = 60;  // seconds: watchdog.limit 0
constexpr double kMedians = 10;
}  // namespace

void RecentSteps::add(double seconds) {
  if (seconds_.size() < kWindow) {
    seconds_.push_back(seconds);
  } else {
    seconds_[next_] = seconds;
  }
  next_ = (next_ + 1) % kWindow;
}

double RecentSteps::median() const {
  if (seconds_.empty()) return 0;
  std::vector<double> sorted = seconds_;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

RunWatch::RunWatch(const WatchdogConfig& config, World& world, const Watch& watch)
    : config_(config),
      watch_(watch),
      own_(watch.watchdog ? nullptr : std::make_unique<Whereabouts>()),
      here_(watch.watchdog ? &watch.watchdog->here() : own_.get()) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  group_ = world.group(Poster::watchdog, GroupKind::control, all);
  everyone_ = std::make_unique<Agreement>(*group_, here_);
}

bool RunWatch::stop_agreed() { return everyone_->sum(static_cast<Index>(stop_requested() ? 1 : 0)) > 0; }

void RunWatch::step(std::int64_t step) {
  here_->step.store(step, std::memory_order_relaxed);
  const double median = steps_.median();
  // The first step makes plans, caches and connections.
  const double limit = median == 0         ? config_.start
                       : config_.limit > 0 ? config_.limit
                                           : std::max(kShortest, kMedians * median);
  here_->enter(PackedText("step"), limit);
}

void RunWatch::explain() {
  constexpr double kSettle = 1.0;
  if (watch_.watchdog) watch_.watchdog->settle(kSettle);
}

void RunWatch::finish() {
  if (watch_.watchdog) watch_.watchdog->finish();
}

RunWatch::Forecast RunWatch::forecast(double save_seconds) const {
  const double seconds = save_seconds + 2 * steps_.median();
  return {.seconds = seconds, .too_long = config_.grace > 0 && seconds > config_.grace / 2};
}

}  // namespace dstrain
