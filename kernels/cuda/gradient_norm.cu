#include "kernels/gradient_norm.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256, kLastThreads = 1024;

template <int N>
__device__ double block_sum(double x) {
  __shared__ double sums[N / 32];
  x = cuda::warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < N / 32; ++w) total += sums[w];
  return total;
}

// One block a norm block: thread t takes vectors of 16 bytes t, t + 256, ..
template <class T>
__global__ void __launch_bounds__(kThreads) squares_kernel(double* sums, const T* x, Index n, bool wide) {
  constexpr int kWide = 16 / sizeof(T);
  const Index begin = blockIdx.x * SquaredNorm::kNormBlock, end = min(n, begin + SquaredNorm::kNormBlock);
  double sum = 0;
  const Index whole = wide ? begin + (end - begin) / kWide * kWide : begin;
  const auto add = [&](T value) {
    const float v = cuda::to_float(value);
    sum += static_cast<double>(v) * v;
  };
#pragma unroll 4
  for (Index i = begin + kWide * static_cast<Index>(threadIdx.x); i < whole; i += kWide * kThreads) {
    const auto v = cuda::load_vec<kWide>(x + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) add(v.v[j]);
  }
  for (Index i = whole + threadIdx.x; i < end; i += kThreads) add(x[i]);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kLastThreads) add_squares_kernel(double* result, const double* sums, Index blocks) {
  double sum = 0;
  for (Index i = threadIdx.x; i < blocks; i += kLastThreads) sum += sums[i];
  sum = block_sum<kLastThreads>(sum);
  if (threadIdx.x == 0) *result += sum;
}

__global__ void update_scalars_kernel(float* scalars, long long* state, const double* squared_norm, const double* loss,
                                      const double* bad, const double* limits, double max_norm, double beta1,
                                      double beta2, bool halt, bool halt_beyond) {
  // A comparison with a NaN is false.
  const bool finite = *bad == 0 && fabs(*loss) <= kMostLoss && *squared_norm >= 0 && *squared_norm <= kMostSquaredNorm;
  const bool within = *squared_norm <= limits[0] && *loss <= limits[1];
  if (state[1] != 0 || !finite || !within) {
    if (finite ? halt_beyond && !within : halt) state[1] = 1;
    scalars[1] = __uint_as_float(0x7fc00000u);  // NaN
    return;
  }
  const auto updates = static_cast<double>(++state[0]);
  scalars[1] = max_norm > 0 ? static_cast<float>(fmin(1.0, max_norm / (sqrt(*squared_norm) + 1e-6))) : 1.0f;
  scalars[2] = static_cast<float>(1 - pow(beta1, updates));
  scalars[3] = static_cast<float>(1 - pow(beta2, updates));
}

}  // namespace

void run(Cuda, Stream& stream, const SquaredNorm& op) {
  const Index n = op.x.dim(0), blocks = cuda::div_up(n, SquaredNorm::kNormBlock);
  const ArenaScope scope(stream.workspace());
  double* const sums = stream.workspace().allocate({blocks}, DType::f64).as<double>();
  if (n == 0) return;
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const x = cuda::pointer<T>(op.x);
    squares_kernel<<<cuda::grid(blocks), kThreads, 0, cuda::stream_of(stream)>>>(
        sums, x, n, reinterpret_cast<std::uintptr_t>(x) % 16 == 0);
  });
  cuda::check_launch("squared_norm");
  add_squares_kernel<<<1, kLastThreads, 0, cuda::stream_of(stream)>>>(op.result.as<double>(), sums, blocks);
  cuda::check_launch("squared_norm");
}

void run(Cuda, Stream& stream, const UpdateScalars& op) {
  update_scalars_kernel<<<1, 1, 0, cuda::stream_of(stream)>>>(
      op.scalars.as<float>(), cuda::pointer<long long>(op.state), op.squared_norm.as<double>(), op.loss.as<double>(),
      op.bad.as<double>(), op.limits.as<double>(), static_cast<double>(op.max_norm), op.beta1, op.beta2, op.halt,
      op.halt_beyond);
  cuda::check_launch("update_scalars");
}

}  // namespace dstrain
