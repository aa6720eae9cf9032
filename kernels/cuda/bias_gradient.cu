#include "kernels/cuda/device/column_sums.cuh"
#include "kernels/matmul.h"

namespace dstrain {

namespace {

constexpr int kWarps = 8, kLanes = 32;

// A block sums kLanes * N columns over a chunk of rows: warp w takes rows w, w + 8, ..; warps are added in order.
template <class T, int N>
__global__ void __launch_bounds__(kWarps* kLanes)
    sum_chunk_kernel(float* partial, const T* x, Index stride, Index columns, Index rows, Index chunk_size) {
  __shared__ float sums[kWarps][kLanes * N];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const Index first = (static_cast<Index>(blockIdx.x) * kLanes + lane) * N;
  const Index begin = blockIdx.y * chunk_size, end = min(rows, begin + chunk_size);
  float sum[N] = {};
  if (first < columns) {
#pragma unroll 8
    for (Index r = begin + warp; r < end; r += kWarps) {
      const auto v = cuda::load_vec<N>(x + r * stride + first);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += cuda::to_float(v.v[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) sums[warp][lane * N + j] = sum[j];
  __syncthreads();
  for (int i = threadIdx.x; i < kLanes * N; i += kWarps * kLanes) {
    const Index c = static_cast<Index>(blockIdx.x) * kLanes * N + i;
    if (c >= columns) continue;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums[w][i];
    partial[blockIdx.y * columns + c] = total;
  }
}

}  // namespace

void run(Cuda, Stream& stream, const BiasGradient& op) {
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1);
  const RowChunks chunks(rows);
  const ArenaScope scope(stream.workspace());
  float* const partial = stream.workspace().allocate({chunks.count * columns}).as<float>();
  if (columns == 0) return;
  if (rows > 0) {
    cuda::dispatch_float(op.dy.dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int N = 16 / sizeof(T);
      const T* const x = cuda::pointer<T>(op.dy);
      const Index stride = cuda::row_stride(op.dy);
      const bool wide = cuda::aligned_rows(op.dy);
      const int n = wide ? N : 1;
      const dim3 blocks(cuda::grid(cuda::div_up(columns, kLanes * n)), cuda::grid(chunks.count));
      if (wide)
        sum_chunk_kernel<T, N>
            <<<blocks, kWarps * kLanes, 0, cuda::stream_of(stream)>>>(partial, x, stride, columns, rows, chunks.size);
      else
        sum_chunk_kernel<T, 1>
            <<<blocks, kWarps * kLanes, 0, cuda::stream_of(stream)>>>(partial, x, stride, columns, rows, chunks.size);
      cuda::check_launch("bias_gradient");
    });
  }
  cuda::add_chunks(stream, {op.grad.as<float>()}, partial, rows > 0 ? chunks.count : 0, columns, op.write);
}

}  // namespace dstrain
