#pragma once
// Observers of ops: one that finds the op where a run goes wrong, one that times them on the device.

#include <deque>
#include <optional>
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
    bool record = false;          // keep what check_finite finds first, in first(), instead of throwing
    OpObserver* inner = nullptr;  // borrowed; sees each op before this one
  };
  // An op with an output that is not finite.
  struct Finding {
    Place place;
    std::int64_t op = 0;  // how many ops came before it
    std::string text;
  };
  // The flag is made on `device`.
  DebugObserver(const Options& options, Device device);

  void before(Stream& stream, const char* op, const Cost& cost) override;
  void after(Stream& stream, const char* op, std::span<const Tensor> outputs) override;
  const std::optional<Finding>& first() const { return first_; }

 private:
  std::string where(const Stream& stream, const char* op, std::span<const Tensor> outputs) const;

  Options options_;
  Buffer memory_;
  Tensor flag_;  // (1) i32
  bool inside_ = false;
  std::int64_t ops_ = 0;
  std::optional<Finding> first_;
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
