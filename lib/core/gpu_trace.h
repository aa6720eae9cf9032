#pragma once
// What a GPU did, kernel by kernel, recorded by CUPTI: for Chrome's trace viewer and Perfetto.

#include <memory>
#include <string>

namespace dstrain::gpu {

// Records from construction to finish(). One at a time in a process: CUPTI's callbacks carry no pointer of ours.
// Throws Error{device} when CUPTI cannot be loaded or another tool (a profiler) holds it.
class Trace {
 public:
  Trace();
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // Waits for the device, stops recording and returns the events of kernels, copies and fills as objects of the trace
  // event format, separated by commas; `pid` is their process number. Times are in microseconds since the first.
  std::string finish(int pid);

 private:
  struct Recorder;
  std::unique_ptr<Recorder> recorder_;
};

}  // namespace dstrain::gpu
