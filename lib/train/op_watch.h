#pragma once
// Observers of ops: one that finds the op where a run goes wrong, one that times them on the device.

#include <deque>
#include <string>

#include "lib/core/gpu.h"
#include "lib/core/stream.h"

namespace dstrain {

// debug.blocking and debug.check_finite.
class DebugObserver final : public OpObserver {
 public:
  struct Options {
    bool blocking = false;      // wait for each op; Error{device} names the one that failed
    bool check_finite = false;  // Error{nonfinite} names the first op whose output is not finite
    int rank = 0;
  };
  // The flag is made on `device`.
  DebugObserver(const Options& options, Device device);

  void before(Stream& stream, const char* op, const Cost& cost) override;
  void after(Stream& stream, const char* op, std::span<const Tensor> outputs) override;

 private:
  std::string where(const Stream& stream, const char* op, std::span<const Tensor> outputs) const;

  Options options_;
  Buffer memory_;
  Tensor flag_;  // (1) i32
  bool inside_ = false;
};

// Times every op with a pair of events in its queue and adds the seconds to a ledger.
class DeviceTimer final : public OpObserver {
 public:
  void before(Stream& stream, const char* op, const Cost& cost) override;
  void after(Stream& stream, const char* op, std::span<const Tensor> outputs) override;
  // Adds what was timed since the last call: launches, costs and seconds by op. The stream must be synchronised.
  void collect(Ledger& ledger);

 private:
  struct Timed {
    const char* op = nullptr;
    Cost cost;
    gpu::Event begin{gpu::Event::Timing::on}, end{gpu::Event::Timing::on};
  };
  std::deque<Timed> timed_;  // events are kept and used again
  std::size_t used_ = 0;
};

}  // namespace dstrain
