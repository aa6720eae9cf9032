#pragma once
// SIGTERM and SIGUSR1 ask a run to save at the next step boundary and end; a second one to end at once. POSIX leaves no
// other way than flags of the process; these are the program's only mutable globals.

namespace dstrain {

// Handles the two signals from construction to destruction; then they act as by default again. One at a time.
class StopSignal {
 public:
  // What comes within so many seconds of the first counts as the first: a signal often comes by two ways, from the
  // launcher and to the process.
  static constexpr double kSame = 1.0;

  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool received() const;
  bool again() const;          // a second one
  bool terminated() const;     // SIGTERM was among them: a launcher that has lost a rank sends it
  double since_first() const;  // seconds; 0 when none has come
};

}  // namespace dstrain
