#pragma once
// Sums over rows in the chunks of kernels/column_sums.h: each chunk is summed into its own row of the workspace, the
// chunks are added in order. No atomics: the same bits run after run.

#include "kernels/column_sums.h"
#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain::cuda {

// out (+)= the sum of partial[chunk * columns + c] over the chunks, in order.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(float* out, const float* partial, Index chunks, Index columns, bool accumulate) {
  const Index c = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= columns) return;
  float sum = 0;
  for (Index i = 0; i < chunks; ++i) sum += partial[i * columns + c];
  out[c] = accumulate ? out[c] + sum : sum;
}

inline void add_chunks(Stream& stream, float* out, const float* partial, Index chunks, Index columns, Write write) {
  constexpr int kThreads = 64;  // few columns: more blocks
  add_chunks_kernel<kThreads><<<grid(div_up(columns, kThreads)), kThreads, 0, stream_of(stream)>>>(
      out, partial, chunks, columns, write == Write::accumulate);
  check_launch("add_chunks");
}

}  // namespace dstrain::cuda
