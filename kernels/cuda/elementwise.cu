#include "kernels/elementwise.h"

#include "kernels/cuda/device/launch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

template <class T, int N>
__global__ void add_kernel(T* y, const T* a, const T* b, Index n) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x * N;
  for (Index i = (static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < n; i += stride) {
    if (i + N <= n) {
      const auto va = cuda::load_vec<N>(a + i), vb = cuda::load_vec<N>(b + i);
      cuda::Vec<T, N> r;
#pragma unroll
      for (int j = 0; j < N; ++j) r.v[j] = cuda::from_float<T>(cuda::to_float(va.v[j]) + cuda::to_float(vb.v[j]));
      cuda::store_vec<N>(y + i, r);
    } else {
      for (Index j = i; j < n; ++j) y[j] = cuda::from_float<T>(cuda::to_float(a[j]) + cuda::to_float(b[j]));
    }
  }
}

}  // namespace

void run(Cuda, Stream& stream, const Add& op) {
  const Index n = op.y.numel();
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<Index>(cuda::div_up(n, kThreads * 8), 132 * 16));
  add_kernel<float, 4>
      <<<blocks, kThreads, 0, cuda::stream_of(stream)>>>(op.y.as<float>(), op.a.as<float>(), op.b.as<float>(), n);
  cuda::check_launch("add");
}

}  // namespace dstrain
