#include "kernels/layer_norm.h"

#include <cmath>

#include "kernels/cpu/column_sums.h"
#include "kernels/rstd.h"

namespace dstrain {

void run(Cpu, Stream& stream, const LayerNormForward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  const ArenaScope scope(stream.workspace());
  const float* const weight = cpu::as_f32(stream, op.weight);
  const float* const bias = cpu::as_f32(stream, op.bias);
  float* const means = op.mean.as<float>();
  float* const rstds = op.rstd.as<float>();
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, columns, [&](Index i) {
      const T* x = cpu::row<T>(op.x, i);
      if (op.branch.defined()) {
        const T* const branch = cpu::row<T>(op.branch, i);
        T* const sum = cpu::row<T>(op.sum, i);
#pragma omp simd
        for (Index c = 0; c < columns; ++c) sum[c] = static_cast<T>(cpu::to_float(x[c]) + cpu::to_float(branch[c]));
        x = sum;
      }
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (Index c = 0; c < columns; ++c) total += cpu::to_float(x[c]);
      const float mean = total / static_cast<float>(columns);
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (Index c = 0; c < columns; ++c) squares += (cpu::to_float(x[c]) - mean) * (cpu::to_float(x[c]) - mean);
      const float rstd = or_nan(1.0f / std::sqrt(squares / static_cast<float>(columns) + op.eps));
      means[i] = mean;
      rstds[i] = rstd;
      T* const y = cpu::row<T>(op.y, i);
#pragma omp simd
      for (Index c = 0; c < columns; ++c) {
        y[c] = static_cast<T>((cpu::to_float(x[c]) - mean) * rstd * weight[c] + bias[c]);
      }
    });
  });
}

// With n = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)) + dresidual.
void run(Cpu, Stream& stream, const LayerNormBackward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  const ArenaScope scope(stream.workspace());
  const float* const weights = cpu::as_f32(stream, op.weight);
  const float* const means = op.mean.as<float>();
  const float* const rstds = op.rstd.as<float>();
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    float* const sums[] = {op.dweight.as<float>(), op.dbias.as<float>()};
    cpu::column_sums(stream, rows, columns, op.write, sums, [&](Index i, float* dweight) {
      float* const dbias = dweight + columns;
      const float* const weight = weights;  // a local: read through the closure, it would be loaded again each time
      const T* const x = cpu::row<T>(op.x, i);
      const T* const dy = cpu::row<T>(op.dy, i);
      const float mean = means[i], rstd = rstds[i];
      float total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
      for (Index c = 0; c < columns; ++c) {
        const float d = cpu::to_float(dy[c]), scaled = d * ((cpu::to_float(x[c]) - mean) * rstd);
        total += d * weight[c];
        dot += scaled * weight[c];
        dweight[c] += scaled;
        dbias[c] += d;
      }
      const float mean_g = total / static_cast<float>(columns), mean_gn = dot / static_cast<float>(columns);
      T* const dx = cpu::row<T>(op.dx, i);
      const auto gradient = [&](Index c) {
        const float normalised = (cpu::to_float(x[c]) - mean) * rstd;
        return rstd * (cpu::to_float(dy[c]) * weight[c] - mean_g - normalised * mean_gn);
      };
      if (op.dresidual.defined()) {
        const T* const dresidual = cpu::row<T>(op.dresidual, i);
#pragma omp simd
        for (Index c = 0; c < columns; ++c) dx[c] = static_cast<T>(gradient(c) + cpu::to_float(dresidual[c]));
      } else {
#pragma omp simd
        for (Index c = 0; c < columns; ++c) dx[c] = static_cast<T>(gradient(c));
      }
    });
  });
}

}  // namespace dstrain
