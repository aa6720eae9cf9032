#pragma once
// Sums of partial sums: (chunks, columns) -> (columns), chunks in a fixed order. No atomics: the same bits run after
// run.

#include "kernels/column_sums.h"
#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain::cuda {

// Where up to two sums go, made in one launch.
struct SumOutputs {
  float *first, *second = nullptr;
};

// A block adds 32 columns of one of the sums: warp w takes chunks w, w + kWarps, .., warps are added in order.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    add_chunks_kernel(SumOutputs outputs, const float* partials, Index chunks, Index columns, bool accumulate) {
  __shared__ float sums[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Index c = static_cast<Index>(blockIdx.x) * 32 + lane;
  const float* const partial = partials + blockIdx.y * chunks * columns;
  float* const out = blockIdx.y == 0 ? outputs.first : outputs.second;
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

// `partials`: (sums, chunks, columns).
inline void add_chunks(Stream& stream, SumOutputs outputs, const float* partials, Index chunks, Index columns,
                       Write write) {
  if (columns == 0) return;
  const dim3 blocks(grid(div_up(columns, 32)), outputs.second != nullptr ? 2 : 1);
  const bool accumulate = write == Write::accumulate;
  const cudaStream_t queue = stream_of(stream);
  if (chunks > 64)
    add_chunks_kernel<32><<<blocks, 32 * 32, 0, queue>>>(outputs, partials, chunks, columns, accumulate);
  else
    add_chunks_kernel<8><<<blocks, 8 * 32, 0, queue>>>(outputs, partials, chunks, columns, accumulate);
  check_launch("add_chunks");
}

}  // namespace dstrain::cuda
