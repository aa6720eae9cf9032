#include "lib/core/clock.h"

#include <chrono>
#include <thread>

namespace dstrain {

namespace {
class SystemClock final : public Clock {
 public:
  double now() const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  std::int64_t wall() const override {
    return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  void sleep(double seconds) const override { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }
};
}  // namespace

const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

}  // namespace dstrain
