#pragma once
// Gradient norm, clipping and AdamW over the flat arenas. Nothing here waits for the host: the clip coefficient goes
// from the norm to the update through `scalars`, and a norm that is not finite makes the update do nothing.

#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/stream.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

class Optimizer {
 public:
  // `memory` provides the few scalars; it is borrowed.
  Optimizer(const OptimizerConfig& config, const ParamArena& params, Arena& memory);

  // squared_norm (1) f64 = this rank's share: the sum over its owned elements.
  void squared_norm(Stream& stream, const Tensor& squared_norm) const;
  // One update with the learning rate `lr`; `update` counts applied updates, the first is 1. `squared_norm` is the
  // whole model's.
  void step(Stream& stream, const Tensor& squared_norm, double lr, std::int64_t update) const;

 private:
  OptimizerConfig config_;
  const ParamArena& params_;
  Tensor scalars_;  // (4) f32, as AdamW reads them
};

}  // namespace dstrain
