#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/loops.h"
#include "kernels/split_master.h"

namespace dstrain {

void run(Cpu, Stream& stream, const AdamW& op) {
  const float* const scalars = op.scalars.as<float>();
  const float clip = scalars[1];
  if (!std::isfinite(clip)) return;
  // Scalars in double, as torch computes them on the host, then rounded once.
  const double lr = scalars[0];
  const float decay = static_cast<float>(1.0 - lr * op.weight_decay), step = static_cast<float>(-lr / scalars[2]);
  const float root = static_cast<float>(std::sqrt(static_cast<double>(scalars[3])));
  const float beta2 = op.beta2, rest1 = static_cast<float>(1.0 - static_cast<double>(op.beta1)),
              rest2 = static_cast<float>(1.0 - static_cast<double>(op.beta2)), eps = op.eps;
  float* const master = op.low.defined() ? nullptr : op.master.as<float>();
  std::uint16_t* const low = op.low.defined() ? op.low.as<std::uint16_t>() : nullptr;
  float* const exp_avg = op.exp_avg.as<float>();
  float* const exp_avg_sq = op.exp_avg_sq.as<float>();
  const bool narrow = op.gradient.dtype == DType::bf16;
  bfloat16* const compute = op.compute.defined() ? op.compute.as<bfloat16>() : nullptr;
  constexpr Index kTile = cpu::kFlatTile / 8;
  cpu::parallel_ranges(stream, op.exp_avg.dim(0), kTile, [&](Index begin, Index end) {
    // A split master is joined, and a bf16 gradient widened, for the while of a tile.
    float joined[kTile], widened[kTile];
    if (narrow) cpu::convert(widened, op.gradient.as<bfloat16>() + begin, end - begin);
    const float* const gradient = narrow ? widened - begin : op.gradient.as<float>();
    float* const weights = low != nullptr ? joined - begin : master;
    if (low != nullptr)
      for (Index i = begin; i < end; ++i) weights[i] = join_master(compute[i], low[i]);
#pragma omp simd
    for (Index i = begin; i < end; ++i) {
      const float g = gradient[i] * clip;
      const float p = weights[i] * decay;
      const float m = exp_avg[i] + rest1 * (g - exp_avg[i]);
      const float v = exp_avg_sq[i] * beta2 + rest2 * g * g;
      const float denominator = std::sqrt(v) / root + eps;
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      weights[i] = p + step * m / denominator;
    }
    if (low != nullptr)
      for (Index i = begin; i < end; ++i) split_master(weights[i], compute[i], low[i]);
    else if (compute != nullptr)
      cpu::convert(compute + begin, master + begin, end - begin);
  });
}

}  // namespace dstrain
