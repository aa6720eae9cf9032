#include "kernels/checksum.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

template <class Word>
__global__ void __launch_bounds__(kThreads) checksum_kernel(unsigned long long* result, const Word* x, Index n) {
  unsigned long long sum = 0;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads)
    sum += static_cast<unsigned long long>(x[i]) * checksum_factor(static_cast<std::uint64_t>(i));
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0 && sum != 0) atomicAdd(result, sum);
}

}  // namespace

void run(Cuda, Stream& stream, const Checksum& op) {
  const Index n = op.x.dim(0);
  if (n == 0) return;
  const unsigned blocks = cuda::grid(std::min<Index>(132 * 16, cuda::div_up(n, kThreads)));
  const cudaStream_t queue = cuda::stream_of(stream);
  auto* const result = cuda::pointer<unsigned long long>(op.result);
  if (size_of(op.x.dtype) == 4)
    checksum_kernel<<<blocks, kThreads, 0, queue>>>(result, cuda::pointer<std::uint32_t>(op.x), n);
  else
    checksum_kernel<<<blocks, kThreads, 0, queue>>>(result, cuda::pointer<std::uint16_t>(op.x), n);
  cuda::check_launch("checksum");
}

}  // namespace dstrain
