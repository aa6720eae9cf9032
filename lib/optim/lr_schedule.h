#pragma once
// The learning rate of each step. Pure.

#include "lib/config/config.h"

namespace dstrain {

// The rate of update `step` (the first is 1) of `steps`. Warm-up is linear from 0, reaching `peak` at warmup_steps.
//   constant  peak
//   cosine    from peak to min_lr along half a cosine over the steps after warm-up (Loshchilov & Hutter 2017)
//   wsd       warm-up, stable, decay: peak until the last decay_steps, then linear to min_lr (Hu et al. 2024)
double learning_rate(const LrScheduleConfig& schedule, double peak, std::int64_t steps, std::int64_t step);

}  // namespace dstrain
