#include "kernels/gradient_norm.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace dstrain {

namespace {

// Sixteen running sums, added pairwise at the end.
double sum_of_squares(const float* x, Index n) {
  using Floats [[gnu::vector_size(16), gnu::aligned(4), gnu::may_alias]] = float;
  using Doubles [[gnu::vector_size(32)]] = double;
  Doubles sums[4] = {};
  Index i = 0;
  for (; i + 16 <= n; i += 16) {
    for (Index lane = 0; lane < 4; ++lane) {
      const Doubles v = __builtin_convertvector(*reinterpret_cast<const Floats*>(x + i + 4 * lane), Doubles);
      sums[lane] += v * v;
    }
  }
  const Doubles all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = (all[0] + all[1]) + (all[2] + all[3]);
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

}  // namespace

void run(Cpu, Stream& stream, const SquaredNorm& op) {
  const Index n = op.x.dim(0), blocks = (n + SquaredNorm::kNormBlock - 1) / SquaredNorm::kNormBlock;
  const ArenaScope scope(stream.workspace());
  double* const sums = stream.workspace().allocate({blocks}, DType::f64).as<double>();
  cpu::parallel_ranges(stream, n, SquaredNorm::kNormBlock, [&](Index begin, Index end) {
    double& sum = sums[begin / SquaredNorm::kNormBlock];
    if (op.x.dtype == DType::f32) {
      sum = sum_of_squares(op.x.as<float>() + begin, end - begin);
      return;
    }
    constexpr Index kTile = 1024;
    float widened[kTile];
    sum = 0;
    for (Index i = begin; i < end; i += kTile) {
      const Index count = std::min(kTile, end - i);
      cpu::convert(widened, op.x.as<bfloat16>() + i, count);
      sum += sum_of_squares(widened, count);
    }
  });
  double& result = *op.result.as<double>();
  for (Index i = 0; i < blocks; ++i) result += sums[i];
}

void run(Cpu, Stream&, const UpdateScalars& op) {
  const double squared = *op.squared_norm.as<double>();
  float* const scalars = op.scalars.as<float>();
  std::int64_t* const state = op.state.as<std::int64_t>();
  const double loss = *op.loss.as<double>();
  const double* const limits = op.limits.as<double>();
  // A comparison with a NaN is false.
  const bool finite =
      *op.bad.as<double>() == 0 && std::fabs(loss) <= kMostLoss && squared >= 0 && squared <= kMostSquaredNorm;
  const bool within = squared <= limits[0] && loss <= limits[1];
  if (state[1] != 0 || !finite || !within) {
    if (finite ? op.halt_beyond && !within : op.halt) state[1] = 1;
    scalars[1] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const auto updates = static_cast<double>(++state[0]);
  const double most = op.max_norm;
  scalars[1] = most > 0 ? static_cast<float>(std::min(1.0, most / (std::sqrt(squared) + 1e-6))) : 1.0f;
  scalars[2] = static_cast<float>(1 - std::pow(op.beta1, updates));
  scalars[3] = static_cast<float>(1 - std::pow(op.beta2, updates));
}

}  // namespace dstrain
