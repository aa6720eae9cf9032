#pragma once
// SIGTERM and SIGUSR1 ask a run to save at the next step boundary and end. POSIX leaves no other way than one flag of
// the process; this is the program's only mutable global.

namespace dstrain {

// Handles the two signals from construction to destruction; then they act as by default again.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool received() const;
};

}  // namespace dstrain
