#pragma once
// One thread for N neighbouring elements.

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain::cuda {

constexpr int kMapThreads = 256;

constexpr int kMostRowThreads = 512;

// f(row, column) for every row and every N-th column; f is a functor with a device operator().
template <int N, class F>
__global__ void __launch_bounds__(kMostRowThreads) row_map_kernel(Index rows, Index columns, F f) {
  const Index c = (static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (c >= columns) return;
  const Index step = static_cast<Index>(gridDim.y) * blockDim.y;
  for (Index row = static_cast<Index>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += step) f(row, c);
}

// Threads of a block for rows of `vectors`: whole warps, of all rows or of the part that leaves the fewest idle;
// several rows when these are short.
inline dim3 row_threads(Index vectors) {
  Index best = kMostRowThreads;
  if (vectors <= kMostRowThreads) {
    best = div_up(vectors, 32) * 32;
  } else {
    for (Index threads = kMostRowThreads; threads >= 128; threads -= 32)
      if (div_up(vectors, threads) * threads < div_up(vectors, best) * best) best = threads;
  }
  return dim3(grid(best), grid(std::max<Index>(1, kMapThreads / best)));
}

template <int N, class F>
void row_map(Stream& stream, Index rows, Index columns, const char* name, const F& f) {
  if (rows == 0 || columns == 0) return;
  const Index vectors = div_up(columns, N);
  const dim3 threads = row_threads(vectors);
  const dim3 blocks(grid(div_up(vectors, threads.x)), grid(std::min<Index>(div_up(rows, threads.y), 65535)));
  row_map_kernel<N><<<blocks, threads, 0, stream_of(stream)>>>(rows, columns, f);
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
