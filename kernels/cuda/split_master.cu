#include "kernels/split_master.h"

#include "kernels/cuda/device/dispatch.cuh"
#include "kernels/cuda/device/split_master.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;
constexpr Index kMostBlocks = 132 * 16;

__global__ void __launch_bounds__(kThreads)
    split_kernel(__nv_bfloat16* hi, std::uint16_t* low, const float* master, Index n) {
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads)
    cuda::split_master(master[i], hi[i], low[i]);
}

__global__ void __launch_bounds__(kThreads)
    join_kernel(float* master, const __nv_bfloat16* hi, const std::uint16_t* low, Index n) {
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads)
    master[i] = cuda::join_master(hi[i], low[i]);
}

unsigned blocks_for(Index n) { return cuda::grid(std::min(kMostBlocks, cuda::div_up(n, kThreads))); }

}  // namespace

void run(Cuda, Stream& stream, const SplitMaster& op) {
  const Index n = op.master.dim(0);
  if (n == 0) return;
  split_kernel<<<blocks_for(n), kThreads, 0, cuda::stream_of(stream)>>>(
      cuda::pointer<__nv_bfloat16>(op.hi), op.low.as<std::uint16_t>(), op.master.as<float>(), n);
  cuda::check_launch("split_master");
}

void run(Cuda, Stream& stream, const JoinMaster& op) {
  const Index n = op.master.dim(0);
  if (n == 0) return;
  join_kernel<<<blocks_for(n), kThreads, 0, cuda::stream_of(stream)>>>(
      op.master.as<float>(), cuda::pointer<__nv_bfloat16>(op.hi), op.low.as<std::uint16_t>(), n);
  cuda::check_launch("join_master");
}

}  // namespace dstrain
