#include "kernels/experts.h"

#include <cstring>

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

void run(Cpu, Stream& stream, const TakeRows& op) {
  const auto width = static_cast<Index>(size_of(op.y.dtype)), bytes = op.y.dim(1) * width;
  const std::int32_t* const from = op.rows_of.as<std::int32_t>();
  cpu::parallel_rows(stream, op.y.dim(0), op.y.dim(1), [&](Index p) {
    std::memcpy(op.y.data + p * op.y.stride(0) * width, op.x.data + from[p] * op.x.stride(0) * width,
                static_cast<std::size_t>(bytes));
  });
}

void run(Cpu, Stream& stream, const ExpertSum& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1), top = op.place.dim(1);
  constexpr Index kBlock = 512;
  cpu::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, columns * top, [&](Index r) {
      const std::int32_t* const place = op.place.as<std::int32_t>() + r * top;
      const float* const weights = op.weights.defined() ? op.weights.as<float>() + r * top : nullptr;
      const T* const start = cpu::row<T>(op.start, r);
      T* const y = cpu::row<T>(op.y, r);
      float sum[kBlock];
      for (Index begin = 0; begin < columns; begin += kBlock) {
        const Index n = std::min(kBlock, columns - begin);
        for (Index c = 0; c < n; ++c) sum[c] = start ? cpu::to_float(start[begin + c]) : 0.0f;
        for (Index k = 0; k < top; ++k) {
          if (place[k] < 0) continue;
          const T* const x = cpu::row<T>(op.x, place[k]) + begin;
          const float w = weights ? weights[k] : 1.0f;
#pragma omp simd
          for (Index c = 0; c < n; ++c) sum[c] += w * cpu::to_float(x[c]);
        }
        cpu::convert(y + begin, sum, n);
      }
    });
  });
}

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
void run(Cpu, Stream& stream, const ExpertActivationGradient& op) {
  const Index rows = op.d.dim(0), columns = op.d.dim(1);
  cpu::dispatch_float(op.d.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, 5 * columns, [&](Index p) {
      const T* const gate = cpu::row<T>(op.gate_up, p);
      const T* const up = gate + columns;
      const T* const d = cpu::row<T>(op.d, p);
      T* const dgate = cpu::row<T>(op.dgate_up, p);
      T* const dup = dgate + columns;
      T* const weighted = cpu::row<T>(op.weighted, p);
      const std::int32_t choice = op.choice_at.as<std::int32_t>()[p];
      const float w = op.weights.as<float>()[choice];
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (Index c = 0; c < columns; ++c) {
        const float g = cpu::to_float(gate[c]), u = cpu::to_float(up[c]), v = cpu::to_float(d[c]);
        const float s = cpu::sigmoid(g), a = g * s * u;
        dot += v * a;
        dgate[c] = static_cast<T>(w * v * u * (s * (1.0f + g * (1.0f - s))));
        dup[c] = static_cast<T>(w * v * (g * s));
        weighted[c] = static_cast<T>(w * a);
      }
      op.dweights.as<float>()[choice] = dot;
    });
  });
}

}  // namespace dstrain
