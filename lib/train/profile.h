#pragma once
// profile.steps: a trace of some steps in the Chrome trace event format. On the CPU every op is an event; on CUDA every
// kernel, copy and fill of the device (lib/core/gpu_trace.h).

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/core/clock.h"
#include "lib/core/gpu_trace.h"
#include "lib/core/stream.h"

namespace dstrain {

class StepTrace {
 public:
  // Starts recording what the stream runs. Borrowed. A stream that is watched already (debug keys) is an Error{usage}.
  StepTrace(Stream& stream, const Clock& clock, int rank);
  ~StepTrace();
  StepTrace(const StepTrace&) = delete;
  StepTrace& operator=(const StepTrace&) = delete;

  // Stops and returns the file's text. Waits for the device.
  std::string finish();

 private:
  class Ops;
  Stream& stream_;
  int rank_;
  std::unique_ptr<Ops> ops_;         // CPU
  std::optional<gpu::Trace> trace_;  // CUDA
};

}  // namespace dstrain
