#include "kernels/dropout.h"

#include "kernels/cpu/loops.h"
#include "kernels/cpu/philox_block.h"

namespace dstrain {

void run(Cpu, Stream& stream, const Dropout& op) {
  constexpr Index kBlock = 256;  // columns whose bits are made at a time
  const Index rows = op.x.dim(0), columns = op.x.dim(1), width = op.columns == 0 ? columns : op.columns;
  const std::int64_t* const samples = op.sample_ids.as<std::int64_t>();
  const std::int32_t* const positions = op.positions.as<std::int32_t>();
  const float scale = 1.0f / (1.0f - op.p);
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, columns, [&](Index r) {
      const T* const x = cpu::row<T>(op.x, r);
      T* const y = cpu::row<T>(op.y, r);
      const auto sample = static_cast<std::uint64_t>(samples[r]);
      const Index start = positions[r] * width + op.first_column;
      std::uint32_t bits[kBlock + 8];
      for (Index begin = 0; begin < columns; begin += kBlock) {
        const Index n = std::min(kBlock, columns - begin), first = start + begin, shift = first % 4;
        cpu::philox_block(op.key, sample, static_cast<std::uint64_t>(first / 4), (n + shift + 3) / 4, bits);
#pragma omp simd
        for (Index i = 0; i < n; ++i) {
          const float kept = cpu::to_float(x[begin + i]) * scale;
          y[begin + i] = static_cast<T>(uniform(bits[shift + i]) >= op.p ? kept : 0.0f);
        }
      }
    });
  });
}

}  // namespace dstrain
