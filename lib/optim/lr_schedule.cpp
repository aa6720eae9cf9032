#include "lib/optim/lr_schedule.h"

#include <cmath>

#include "lib/core/errors.h"

namespace dstrain {

double learning_rate(const LrScheduleConfig& s, double peak, std::int64_t steps, std::int64_t step) {
  check(1 <= step, "learning rate of step {}", step);
  if (step < s.warmup_steps) return peak * static_cast<double>(step) / static_cast<double>(s.warmup_steps);
  if (s.type == "constant") return peak;
  const auto fall = [&](std::int64_t begin, auto shape) {  // shape: [0, 1] -> [1, 0]
    if (step <= begin) return peak;
    const double t = steps <= begin ? 1.0 : static_cast<double>(step - begin) / static_cast<double>(steps - begin);
    return s.min_lr + (peak - s.min_lr) * shape(std::fmin(t, 1.0));
  };
  if (s.type == "cosine") return fall(s.warmup_steps, [](double t) { return 0.5 * (1 + std::cos(M_PI * t)); });
  check(s.type == "wsd", "learning-rate schedule '{}'", s.type);
  return fall(steps - s.decay_steps, [](double t) { return 1 - t; });
}

}  // namespace dstrain
