#include "kernels/gradient_norm.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace dstrain {

void run(Cpu, Stream& stream, const SquaredNorm& op) {
  const Index n = op.x.dim(0), blocks = (n + SquaredNorm::kNormBlock - 1) / SquaredNorm::kNormBlock;
  const ArenaScope scope(stream.workspace());
  double* const sums = stream.workspace().allocate({blocks}, DType::f64).as<double>();
  const float* const x = op.x.as<float>();
  cpu::parallel_ranges(stream, n, SquaredNorm::kNormBlock, [&](Index begin, Index end) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = begin; i < end; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    sums[begin / SquaredNorm::kNormBlock] = sum;
  });
  double& result = *op.result.as<double>();
  for (Index i = 0; i < blocks; ++i) result += sums[i];
}

void run(Cpu, Stream&, const ClipCoefficient& op) {
  const double squared = *op.squared_norm.as<double>();
  float coefficient = 1.0f;
  if (!std::isfinite(squared)) {
    coefficient = std::numeric_limits<float>::quiet_NaN();
  } else if (op.max_norm > 0) {
    coefficient = static_cast<float>(std::min(1.0, static_cast<double>(op.max_norm) / (std::sqrt(squared) + 1e-6)));
  }
  op.scalars.as<float>()[1] = coefficient;
}

}  // namespace dstrain
