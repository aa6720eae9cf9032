#pragma once
// Time, behind an interface so that tests can step it. Timers use now(); only file contents meant for people use
// wall().

#include <cstdint>

namespace dstrain {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual double now() const = 0;         // seconds, monotonic, arbitrary origin
  virtual std::int64_t wall() const = 0;  // seconds since 1970, UTC
  virtual void sleep(double seconds) const = 0;
};

// The machine's clocks. Stateless; one instance serves all.
const Clock& system_clock();

}  // namespace dstrain
