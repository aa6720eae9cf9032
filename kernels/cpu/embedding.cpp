#include "kernels/embedding.h"

#include "kernels/cpu/loops.h"

namespace dstrain {

void run(Cpu, Stream& stream, const EmbeddingForward& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1), entries = op.table.dim(0);
  const std::int32_t* const tokens = op.tokens.as<std::int32_t>();
  cpu::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, columns, [&](Index i) {
      const Index entry = tokens[i] - op.first_row;
      const bool here = entry >= 0 && entry < entries;
      T* const y = cpu::row<T>(op.y, i);
      if (op.write == Write::overwrite) {
        if (!here) return std::fill(y, y + columns, T{});
        const T* const from = cpu::row<T>(op.table, entry);
        std::copy(from, from + columns, y);
      } else if (here) {
        const T* const from = cpu::row<T>(op.table, entry);
#pragma omp simd
        for (Index c = 0; c < columns; ++c) y[c] = static_cast<T>(cpu::to_float(y[c]) + cpu::to_float(from[c]));
      }
    });
  });
}

// Parallel over columns: each tile adds all rows in order.
void run(Cpu, Stream& stream, const EmbeddingBackward& op) {
  constexpr Index kColumns = 64;
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1), entries = op.dtable.dim(0);
  const std::int32_t* const tokens = op.tokens.as<std::int32_t>();
  if (op.write == Write::overwrite) {
    cpu::parallel_rows(stream, entries, columns, [&](Index i) {
      float* const to = cpu::row<float>(op.dtable, i);
      std::fill(to, to + columns, 0.0f);
    });
  }
  cpu::dispatch_float(op.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_ranges(stream, columns, kColumns, [&](Index begin, Index end) {
      for (Index i = 0; i < rows; ++i) {
        const Index entry = tokens[i] - op.first_row;
        if (entry < 0 || entry >= entries || tokens[i] == op.frozen) continue;
        float* const to = cpu::row<float>(op.dtable, entry);
        const T* const dy = cpu::row<T>(op.dy, i);
#pragma omp simd
        for (Index c = begin; c < end; ++c) to[c] += cpu::to_float(dy[c]);
      }
    });
  });
}

}  // namespace dstrain
