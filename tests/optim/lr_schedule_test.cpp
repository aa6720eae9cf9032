#include "lib/optim/lr_schedule.h"

#include <cmath>

#include "tests/support/catch.h"

using namespace dstrain;

namespace {
void check_near(double a, double b) { CHECK(std::fabs(a - b) <= 1e-15); }
}  // namespace

TEST_CASE("warm-up is linear and reaches the peak at its last step", "[optim]") {
  for (const char* type : {"constant", "cosine", "wsd"}) {
    const LrScheduleConfig s{.type = type, .warmup_steps = 4, .decay_steps = 2, .min_lr = 0.1};
    check_near(learning_rate(s, 1.0, 12, 1), 0.25);
    check_near(learning_rate(s, 1.0, 12, 3), 0.75);
    check_near(learning_rate(s, 1.0, 12, 4), 1.0);
  }
}

TEST_CASE("constant stays, cosine and wsd end at min_lr", "[optim]") {
  const LrScheduleConfig constant{.type = "constant"}, cosine{.type = "cosine", .warmup_steps = 2, .min_lr = 0.2},
      wsd{.type = "wsd", .warmup_steps = 2, .decay_steps = 4, .min_lr = 0.2};
  check_near(learning_rate(constant, 1.0, 10, 10), 1.0);
  check_near(learning_rate(cosine, 1.0, 10, 6), 0.6);  // half way
  check_near(learning_rate(cosine, 1.0, 10, 10), 0.2);
  check_near(learning_rate(cosine, 1.0, 10, 4), 0.2 + 0.8 * 0.5 * (1 + std::cos(M_PI / 4)));
  check_near(learning_rate(wsd, 1.0, 10, 6), 1.0);
  check_near(learning_rate(wsd, 1.0, 10, 7), 0.8);
  check_near(learning_rate(wsd, 1.0, 10, 10), 0.2);
  check_near(learning_rate(cosine, 1.0, 10, 15), 0.2);  // a run that goes on past its plan
}
