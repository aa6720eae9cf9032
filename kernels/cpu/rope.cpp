#include "kernels/rope.h"

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

void run(Cpu, Stream& stream, const Rope& op) {
  const Index rows = op.x.dim(0), heads = op.x.dim(1), half = op.x.dim(2) / 2;
  constexpr Index kBlock = 128;  // pairs whose sines are kept while the heads go by
  const std::int32_t* const positions = op.positions.as<std::int32_t>();
  const float* const frequencies = op.inverse_frequencies.as<float>();
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, heads * half * 2, [&](Index r) {
      float sine[kBlock], cosine[kBlock];
      for (Index begin = 0; begin < half; begin += kBlock) {
        const Index n = std::min(kBlock, half - begin);
        const float position = static_cast<float>(positions[r]);
#pragma omp simd
        for (Index i = 0; i < n; ++i) cpu::fast_sincos(position * frequencies[begin + i], sine[i], cosine[i]);
        if (op.backward) {
          for (Index i = 0; i < n; ++i) sine[i] = -sine[i];
        }
        for (Index h = 0; h < heads; ++h) {
          const T* const x = cpu::row<T>(op.x, r) + h * op.x.stride(1) + begin;
          T* const y = cpu::row<T>(op.y, r) + h * op.y.stride(1) + begin;
#pragma omp simd
          for (Index i = 0; i < n; ++i) {
            const float first = cpu::to_float(x[i]), second = cpu::to_float(x[i + half]);
            y[i] = static_cast<T>(first * cosine[i] - second * sine[i]);
            y[i + half] = static_cast<T>(second * cosine[i] + first * sine[i]);
          }
        }
      }
    });
  });
}

}  // namespace dstrain
