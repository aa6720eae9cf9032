#pragma once
// Gradient norm, clipping and AdamW over the flat arenas. Nothing here waits for the host: the numbers of an update are
// made on the device, and a loss or norm that is not finite makes the update do nothing.

#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/stream.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

class Optimizer {
 public:
  // `memory` provides the few scalars; it is borrowed. `halt`: after a value that is not finite no update is applied
  // any more.
  Optimizer(const OptimizerConfig& config, const ParamArena& params, Arena& memory, bool halt);

  // squared_norm (1) f64 = this rank's share: the sum over its owned elements.
  void squared_norm(Stream& stream, const Tensor& squared_norm) const;
  // One update with the learning rate in lr(). `squared_norm` and `loss`, (1) f64, are the whole model's.
  void step(Stream& stream, const Tensor& squared_norm, const Tensor& loss) const;

  const Tensor& lr() const { return lr_; }        // (1) f32, written by the caller before step()
  const Tensor& state() const { return state_; }  // (2) i64: updates applied, whether halted
  // Counts from here; for a resume. Ends a halt.
  void set_updates(std::int64_t applied) const;

 private:
  OptimizerConfig config_;
  const ParamArena& params_;
  bool halt_;
  Tensor scalars_, lr_, state_;  // (4) f32 as AdamW reads them, its first, (2) i64 as UpdateScalars has it
};

}  // namespace dstrain
