#include "kernels/swiglu.h"

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

void run(Cpu, Stream& stream, const SwiGluForward& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1);
  cpu::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, 3 * columns, [&](Index i) {
      const T* const gate = cpu::row<T>(op.gate_up, i);
      const T* const up = gate + columns;
      T* const y = cpu::row<T>(op.y, i);
#pragma omp simd
      for (Index c = 0; c < columns; ++c) {
        const float g = cpu::to_float(gate[c]);
        y[c] = static_cast<T>(g * cpu::sigmoid(g) * cpu::to_float(up[c]));
      }
    });
  });
}

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
void run(Cpu, Stream& stream, const SwiGluBackward& op) {
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1);
  cpu::dispatch_float(op.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, 3 * columns, [&](Index i) {
      const T* const gate = cpu::row<T>(op.gate_up, i);
      const T* const up = gate + columns;
      const T* const dy = cpu::row<T>(op.dy, i);
      T* const dgate = cpu::row<T>(op.dgate_up, i);
      T* const dup = dgate + columns;
#pragma omp simd
      for (Index c = 0; c < columns; ++c) {
        const float g = cpu::to_float(gate[c]), u = cpu::to_float(up[c]), d = cpu::to_float(dy[c]);
        const float s = cpu::sigmoid(g);
        dgate[c] = static_cast<T>(d * u * (s * (1.0f + g * (1.0f - s))));
        dup[c] = static_cast<T>(d * (g * s));
      }
    });
  });
}

}  // namespace dstrain
