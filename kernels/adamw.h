#pragma once
// AdamW (Loshchilov & Hutter 2019) over flat memory, with torch's order of operations.

#include "kernels/op.h"

namespace dstrain {

// g = clip * gradient; master *= 1 - lr * weight_decay; exp_avg += (1 - beta1) (g - exp_avg);
// exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) g^2;
// master -= lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps).
// An element's bits depend on its own values only, so sharded and whole updates agree. Does nothing when the clip
// coefficient is not finite.
struct AdamW {
  static constexpr const char* name = "adamw";
  Tensor master, exp_avg, exp_avg_sq;  // (n) f32, updated
  Tensor gradient;                     // (n) f32 or bf16
  Tensor compute = {};                 // (n) bf16, written from master in the same pass
  Tensor low = {};                     // (n) u16; then master is undefined: it is (compute, low), see split_master.h
  Tensor scalars;                      // (4) f32: lr, clip coefficient, 1 - beta1^t, 1 - beta2^t
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0.0f;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 5> outputs() const { return {master, exp_avg, exp_avg_sq, compute, low}; }
};
void run(Cpu, Stream& stream, const AdamW& op);
void run(Cuda, Stream& stream, const AdamW& op);

}  // namespace dstrain
