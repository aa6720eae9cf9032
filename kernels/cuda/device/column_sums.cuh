#pragma once
// Sums of partial sums: (chunks, columns) -> (columns), chunks in a fixed order. No atomics: the same bits run after
// run.

#include "kernels/column_sums.h"
#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain::cuda {

// A block adds 32 columns: warp w takes chunks w, w + 8, .., warps are added in order.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    add_chunks_kernel(float* out, const float* partial, Index chunks, Index columns, bool accumulate) {
  __shared__ float sums[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Index c = static_cast<Index>(blockIdx.x) * 32 + lane;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (Index i = warp; i < chunks; i += kWarps) sum += partial[i * columns + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= columns) return;
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  out[c] = accumulate ? out[c] + total : total;
}

inline void add_chunks(Stream& stream, float* out, const float* partial, Index chunks, Index columns, Write write) {
  if (columns == 0) return;
  constexpr int kWarps = 8;
  add_chunks_kernel<kWarps><<<grid(div_up(columns, 32)), kWarps * 32, 0, stream_of(stream)>>>(
      out, partial, chunks, columns, write == Write::accumulate);
  check_launch("add_chunks");
}

}  // namespace dstrain::cuda
