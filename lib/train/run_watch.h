#pragma once
// RunWatch: what a trainer tells the watchdogs, and what it hears of signals.

#include <memory>
#include <vector>

#include "lib/comm/agree.h"
#include "lib/comm/watchdog.h"
#include "lib/config/config.h"
#include "lib/core/stop_signal.h"

namespace dstrain {

// Borrowed; what is null is not there.
struct Watch {
  const StopSignal* signal = nullptr;
  Watchdog* watchdog = nullptr;
};

// The median of the last steps' seconds.
class RecentSteps {
 public:
  void add(double seconds);
  double median() const;  // 0 when there is none

 private:
  static constexpr std::size_t kWindow = 63;
  std::vector<double> seconds_;
  std::size_t next_ = 0;
};

class RunWatch {
 public:
  // Collective.
  RunWatch(const WatchdogConfig& config, World& world, const Watch& watch);

  Whereabouts* here() { return here_; }
  // This rank's own.
  bool stop_requested() const { return watch_.signal && watch_.signal->received(); }
  // Whether any rank was asked to stop. Collective; the training thread's.
  bool stop_agreed();

  // What the training thread does from now on, and for how long it may do so without progress.
  void start() { here_->enter(PackedText("start"), config_.start); }
  void step(std::int64_t step);
  void evaluation() { here_->enter(PackedText("evaluation"), config_.evaluation); }
  void save() { here_->enter(PackedText("save"), config_.save); }
  void step_took(double seconds) { steps_.add(seconds); }

  // From now on any rank may write to the run directory.
  void own_directory() { here_->directory = 1; }
  bool owns_directory() const { return here_->directory != 0; }
  // This rank ends by itself.
  void ends(ExitCode code) { here_->ended = static_cast<int>(code); }
  // After an Error{lost}: the watchdog finds the reason and ends the process, or has none and this comes back.
  void explain();
  // The end of a run that went well. Collective.
  void finish();

  // Seconds that a stop takes: a save and two steps. Too long: more than half the grace.
  struct Forecast {
    double seconds = 0;
    bool too_long = false;
  };
  Forecast forecast(double save_seconds) const;

 private:
  const WatchdogConfig config_;
  Watch watch_;
  std::unique_ptr<Whereabouts> own_;
  Whereabouts* here_;
  std::unique_ptr<ProcessGroup> group_;
  std::unique_ptr<Agreement> everyone_;
  RecentSteps steps_;
};

}  // namespace dstrain
