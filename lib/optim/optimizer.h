#pragma once
// Gradient norm, clipping and AdamW over the flat arenas. Nothing here waits for the host: the numbers of an update are
// made on the device, and a loss or norm that is not finite makes the update do nothing.

#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/stream.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

// No weight or gradient of a run that trains comes near.
constexpr float kMostValue = 0x1p60f;

class Optimizer {
 public:
  // After which values no update is applied any more: those that are not finite, those beyond the limits.
  struct Halt {
    bool nonfinite = false, beyond = false;
  };
  // `memory` provides the few scalars; it is borrowed.
  Optimizer(const OptimizerConfig& config, const ParamArena& params, Arena& memory, Halt halt);

  // squared_norm (1) f64 = this rank's share: the sum over its owned elements, those of experts that are spread over
  // ranks if `spread`, the others if `dense`. bad (1) f64 = 1 when one of the others is not finite, or beyond
  // kMostValue, else it is left.
  void squared_norm(Stream& stream, const Tensor& squared_norm, const Tensor& bad, bool dense = true,
                    bool spread = true) const;
  // bad (1) f64 = 1 when a weight of this rank is not finite or beyond kMostValue, else 0.
  void check_weights(Stream& stream, const Tensor& bad) const;
  // One update with the learning rate in lr() and the limits in limits(). `squared_norm`, `loss` and `bad`, (1) f64,
  // are the whole model's. Balancing biases move by `bias_rate`.
  void step(Stream& stream, const Tensor& squared_norm, const Tensor& loss, const Tensor& bad,
            float bias_rate = 0) const;

  const Tensor& lr() const { return lr_; }          // (1) f32, written by the caller before step()
  const Tensor& limits() const { return limits_; }  // (2) f64, of squared norm and loss; written before step() too
  const Tensor& state() const { return state_; }    // (2) i64: updates applied, whether halted
  // Counts from here; for a resume. Ends a halt.
  void set_updates(std::int64_t applied) const;

 private:
  OptimizerConfig config_;
  const ParamArena& params_;
  Halt halt_;
  Tensor scalars_, lr_, limits_,
      state_;  // (4) f32 as AdamW reads them, its first, (2) f64, (2) i64 as UpdateScalars has it
};

}  // namespace dstrain
