#pragma once
// One thread for N neighbouring elements of a row.

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain::cuda {

constexpr int kMapThreads = 256;

// f(row, column) for every row and every N-th column; f is a functor with a device operator().
template <int N, class F>
__global__ void __launch_bounds__(kMapThreads) row_map_kernel(Index rows, Index columns, F f) {
  const Index c = (static_cast<Index>(blockIdx.x) * kMapThreads + threadIdx.x) * N;
  if (c >= columns) return;
  for (Index row = blockIdx.y; row < rows; row += gridDim.y) f(row, c);
}

template <int N, class F>
void row_map(Stream& stream, Index rows, Index columns, const char* name, const F& f) {
  if (rows == 0 || columns == 0) return;
  const dim3 blocks(grid(div_up(div_up(columns, N), kMapThreads)), grid(std::min<Index>(rows, 65535)));
  row_map_kernel<N><<<blocks, kMapThreads, 0, stream_of(stream)>>>(rows, columns, f);
  check_launch(name);
}

// f(i) for every N-th element of flat memory.
template <int N, class F>
__global__ void __launch_bounds__(kMapThreads) flat_map_kernel(Index n, F f) {
  for (Index i = (static_cast<Index>(blockIdx.x) * kMapThreads + threadIdx.x) * N; i < n;
       i += static_cast<Index>(gridDim.x) * kMapThreads * N)
    f(i);
}

template <int N, class F>
void flat_map(Stream& stream, Index n, const char* name, const F& f) {
  if (n == 0) return;
  const Index most = 132 * 32;
  flat_map_kernel<N>
      <<<grid(std::min(most, div_up(div_up(n, N), kMapThreads))), kMapThreads, 0, stream_of(stream)>>>(n, f);
  check_launch(name);
}

inline bool aligned_flat(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }

}  // namespace dstrain::cuda
