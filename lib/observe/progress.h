#pragma once
// The line that a person watches: rewritten in place on a terminal, printed now and then elsewhere.

#include <cstdint>
#include <string>

#include "lib/core/clock.h"
#include "lib/observe/metrics.h"

namespace dstrain {

std::string human_count(double v);    // 12.3k, 4.56M
std::string human_bytes(double v);    // 12.3 MiB
std::string human_seconds(double v);  // 1h02m, 3m04s, 5.6s

// "step 120/1000  loss 3.21  12.3k tok/s  mfu 61.2%  eta 3m04s  mem 1.2 GiB"
std::string progress_line(const StepRecord& record, std::int64_t steps, double eta_seconds, std::size_t memory_bytes);

class Progress {
 public:
  // `enabled` on the rank that prints. Writes to standard output. `in_place`: rewrite one line when that is a terminal;
  // a launcher's pseudo-terminal is none.
  Progress(bool enabled, bool in_place, const Clock& clock, std::int64_t steps, std::size_t memory_bytes);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepRecord& record);
  // Before somebody else writes to the terminal.
  void end_line();
  // A line that stays, such as an evaluation.
  void message(const std::string& text);

 private:
  bool enabled_;
  bool terminal_;
  const Clock& clock_;
  std::int64_t steps_;
  std::size_t memory_bytes_;
  double smoothed_ = 0;  // seconds a step
  double last_print_ = 0;
  bool open_line_ = false;
};

}  // namespace dstrain
