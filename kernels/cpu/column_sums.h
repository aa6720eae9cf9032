#pragma once
// The CPU side of kernels/column_sums.h.

#include "kernels/column_sums.h"
#include "kernels/cpu/loops.h"

namespace dstrain::cpu {

// Calls body(row, partial) for every row in parallel, each chunk's rows in order; partial is the chunk's
// (outputs * columns) f32, zero at its first row. Then sums[o] (columns) (+)= the partials in order of chunks.
template <std::size_t outputs, class F>
void column_sums(Stream& stream, Index rows, Index columns, Write write, float* const (&sums)[outputs], F&& body) {
  const RowChunks chunks(rows);
  const Index width = columns * static_cast<Index>(outputs);
  float* const partials = stream.workspace().allocate({chunks.count, width}).as<float>();
  stream.pool().parallel_for(chunks.count, [&](Index i) {
    float* const partial = partials + i * width;
    std::fill(partial, partial + width, 0.0f);
    for (Index r = chunks.begin(i); r < chunks.end(i); ++r) body(r, partial);
  });
  for (std::size_t o = 0; o < outputs; ++o) {
    parallel_ranges(stream, columns, 4096, [&](Index begin, Index end) {
      float* const sum = sums[o];
      if (write == Write::overwrite) std::fill(sum + begin, sum + end, 0.0f);
      for (Index i = 0; i < chunks.count; ++i) {
        const float* const partial = partials + i * width + static_cast<Index>(o) * columns;
#pragma omp simd
        for (Index c = begin; c < end; ++c) sum[c] += partial[c];
      }
    });
  }
}

}  // namespace dstrain::cpu
