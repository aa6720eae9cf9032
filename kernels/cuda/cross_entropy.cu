#include <cuda_pipeline.h>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;

// The maximum of a row and the sum of exp(x - maximum), merged.
struct Stats {
  float most, sum;
};

// With both maxima -inf the sums are 0, or NaN when a value is: NaN must reach the loss.
__device__ inline Stats merge(Stats a, Stats b) {
  const float most = fmaxf(a.most, b.most);
  if (most == -INFINITY) return {most, a.sum + b.sum};
  return {most, a.sum * expf(a.most - most) + b.sum * expf(b.most - most)};
}

// exp(x - most). For bfloat16 two units in the last place of the sum's float32 are plenty.
template <class T>
__device__ inline float exp_of(float x, float most) {
  if constexpr (sizeof(T) == 4)
    return expf(x - most);
  else
    return __expf(x - most);
}

__device__ inline float shift_of(float most) { return most == -INFINITY ? 0.0f : most; }

__device__ inline Stats block_stats(Stats s) {
  __shared__ Stats parts[kWarps];
  for (int d = 16; d > 0; d /= 2)
    s = merge(s, {__shfl_xor_sync(0xffffffffu, s.most, d), __shfl_xor_sync(0xffffffffu, s.sum, d)});
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
  __syncthreads();
  Stats all = parts[0];
  for (int w = 1; w < kWarps; ++w) all = merge(all, parts[w]);
  __syncthreads();
  return all;
}

// Two passes would read the row twice: sums are rescaled when the maximum grows.
template <class T, int N>
__device__ inline Stats row_stats(const T* row, Index valid) {
  Stats s{-INFINITY, 0.0f};
  const Index whole = valid / N * N;
  const auto add = [&](const auto& v) {
    float most = s.most;
#pragma unroll
    for (const T& x : v.v) most = fmaxf(most, cuda::to_float(x));
    const float shift = shift_of(most);
    float sum = 0;
#pragma unroll
    for (const T& x : v.v) sum += exp_of<T>(cuda::to_float(x), shift);
    s = {most, s.sum * exp_of<T>(s.most, shift) + sum};
  };
  for (Index c = static_cast<Index>(threadIdx.x) * N; c < whole; c += kThreads * N) add(cuda::load_vec<N>(row + c));
  for (Index c = whole + threadIdx.x; c < valid; c += kThreads) add(cuda::load_vec<1>(row + c));
  return s;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    stats_kernel(float* stats, const T* logits, Index stride, const std::int32_t* targets, Index first, Index valid) {
  const Index row = blockIdx.x;
  const T* const x = logits + row * stride;
  const Stats s = block_stats(row_stats<T, N>(x, valid));
  if (threadIdx.x != 0) return;
  const Index target = targets[row] - first;
  stats[3 * row] = s.most;
  stats[3 * row + 1] = s.sum;
  stats[3 * row + 2] = target >= 0 && target < valid ? cuda::to_float(x[target]) : 0.0f;
}

struct Finish {
  double* losses;  // (rows)
  const float* stats;
  const std::int32_t* targets;
  const float* weights;
  const float* scale;
  Index ranks, rows, stride, columns, first, valid;
  bool gradient;
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads) finish_kernel(T* logits, Finish f) {
  const Index row = blockIdx.x;
  T* const x = logits + row * f.stride;
  const float weight = f.weights[row];
  if (weight == 0) {
    if (threadIdx.x == 0) f.losses[row] = 0;
    if (!f.gradient) return;
    for (Index c = threadIdx.x; c < f.columns; c += kThreads) x[c] = cuda::from_float<T>(0.0f);
    return;
  }
  float most = -INFINITY;
  for (Index r = 0; r < f.ranks; ++r) most = fmaxf(most, f.stats[3 * (r * f.rows + row)]);
  double sum = 0, target_logit = 0;
  for (Index r = 0; r < f.ranks; ++r) {
    const float* const s = f.stats + 3 * (r * f.rows + row);
    if (s[1] != 0) sum += static_cast<double>(s[1]) * exp(static_cast<double>(s[0]) - most);
    target_logit += s[2];
  }
  const double log_sum = log(sum);
  if (threadIdx.x == 0) f.losses[row] = weight * (log_sum + most - target_logit);
  if (!f.gradient) return;
  const float factor = *f.scale * weight, scaled = static_cast<float>(factor / sum);
  const Index target = f.targets[row] - f.first;
  const bool here = target >= 0 && target < f.valid;
  // expm1 keeps the digits of softmax - 1 when the target is nearly certain. Read before anyone writes.
  const float at_target = here ? cuda::to_float(x[target]) : 0.0f;
  __syncthreads();
  const float target_value = factor * expm1f(at_target - most - static_cast<float>(log_sum));
  const Index whole = f.valid / N * N;
  for (Index c = static_cast<Index>(threadIdx.x) * N; c < whole; c += kThreads * N) {
    auto v = cuda::load_vec<N>(x + c);
#pragma unroll
    for (T& d : v.v) d = cuda::from_float<T>(scaled * exp_of<T>(cuda::to_float(d), most));
    cuda::store_vec<N>(x + c, v);
    if (here && target >= c && target < c + N) x[target] = cuda::from_float<T>(target_value);
  }
  for (Index c = whole + threadIdx.x; c < f.columns; c += kThreads) {
    float d = 0;
    if (c < f.valid) d = here && c == target ? target_value : scaled * exp_of<T>(cuda::to_float(x[c]), most);
    x[c] = cuda::from_float<T>(d);
  }
}

// A row is read once and kept in shared memory, where each thread comes back to the vectors that it copied itself.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) fused_kernel(T* logits, Finish f) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Index row = blockIdx.x;
  T* const x = logits + row * f.stride;
  T* const kept = reinterpret_cast<T*>(memory);  // (columns)
  const Index first = static_cast<Index>(threadIdx.x) * N;
  constexpr Index kStep = kThreads * N;
  const float weight = f.weights[row];
  if (weight == 0) {
    if (threadIdx.x == 0) f.losses[row] = 0;
    if (!f.gradient) return;
    for (Index c = first; c < f.columns; c += kStep) cuda::store_vec<N>(x + c, cuda::Vec<T, N>{});
    return;
  }
  for (Index c = first; c < f.columns; c += kStep) __pipeline_memcpy_async(kept + c, x + c, N * sizeof(T));
  __pipeline_commit();
  const Index target = f.targets[row];
  const bool here = target >= 0 && target < f.valid;
  const float at_target = here ? cuda::to_float(x[target]) : 0.0f;
  __pipeline_wait_prior(0);

  const Index whole = f.valid / N * N;  // a vector beyond is padding, in part
  float most = -INFINITY, sum = 0;
  for (Index c = first; c < whole; c += kStep) {
    const auto v = cuda::load_vec<N>(kept + c);
#pragma unroll
    for (const T& d : v.v) most = fmaxf(most, cuda::to_float(d));
  }
  const bool last_is_mine = whole < f.valid && whole % kStep == first;
  if (last_is_mine)
    for (Index c = whole; c < f.valid; ++c) most = fmaxf(most, cuda::to_float(kept[c]));
  const float shift = shift_of(most);
  for (Index c = first; c < whole; c += kStep) {
    const auto v = cuda::load_vec<N>(kept + c);
#pragma unroll
    for (const T& d : v.v) sum += exp_of<T>(cuda::to_float(d), shift);
  }
  if (last_is_mine)
    for (Index c = whole; c < f.valid; ++c) sum += exp_of<T>(cuda::to_float(kept[c]), shift);

  const Stats all = block_stats({most, sum});
  const float log_sum = logf(all.sum);
  if (threadIdx.x == 0) f.losses[row] = weight * (log(static_cast<double>(all.sum)) + all.most - at_target);
  if (!f.gradient) return;
  const float factor = *f.scale * weight, scaled = factor / all.sum;
  for (Index c = first; c < f.columns; c += kStep) {
    auto v = cuda::load_vec<N>(kept + c);
#pragma unroll
    for (T& d : v.v) d = cuda::from_float<T>(scaled * exp_of<T>(cuda::to_float(d), all.most));
    if (c >= whole) {
#pragma unroll
      for (int j = 0; j < N; ++j)
        if (c + j >= f.valid) v.v[j] = cuda::from_float<T>(0.0f);
    }
    cuda::store_vec<N>(x + c, v);
    if (here && target >= c && target < c + N)
      x[target] = cuda::from_float<T>(factor * expm1f(at_target - all.most - log_sum));
  }
}

// Shared memory that a block of the current device may ask for.
std::size_t shared_memory() {
  int device = 0, bytes = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes);
}

constexpr int kLastThreads = 1024;

__global__ void __launch_bounds__(kLastThreads) add_losses_kernel(double* loss, const double* losses, Index rows) {
  __shared__ double sums[kLastThreads / 32];
  double sum = 0;
  for (Index i = threadIdx.x; i < rows; i += kLastThreads) sum += losses[i];
  sum = cuda::warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = *loss;
  for (int w = 0; w < kLastThreads / 32; ++w) total += sums[w];
  *loss = total;
}

Index valid_of(Index valid_columns, const Tensor& logits) { return valid_columns < 0 ? logits.dim(1) : valid_columns; }

}  // namespace

void run(Cuda, Stream& stream, const CrossEntropyStats& op) {
  const Index rows = op.logits.dim(0), valid = valid_of(op.valid_columns, op.logits);
  if (rows == 0) return;
  cuda::dispatch_float(op.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto launch_kernel = [&](auto kernel) {
      kernel<<<cuda::grid(rows), kThreads, 0, cuda::stream_of(stream)>>>(
          op.stats.as<float>(), cuda::pointer<T>(op.logits), cuda::row_stride(op.logits), op.targets.as<std::int32_t>(),
          op.first_column, valid);
    };
    cuda::aligned_rows(op.logits) ? launch_kernel(stats_kernel<T, N>) : launch_kernel(stats_kernel<T, 1>);
  });
  cuda::check_launch("cross_entropy_stats");
}

void run(Cuda, Stream& stream, const CrossEntropyFinish& op) {
  const Index rows = op.logits.dim(0);
  if (rows == 0) return;
  const ArenaScope scope(stream.workspace());
  const Finish f{.losses = stream.workspace().allocate({rows}, DType::f64).as<double>(),
                 .stats = op.stats.as<float>(),
                 .targets = op.targets.as<std::int32_t>(),
                 .weights = op.weights.as<float>(),
                 .scale = op.gradient ? op.scale.as<float>() : nullptr,
                 .ranks = op.stats.dim(0),
                 .rows = rows,
                 .stride = cuda::row_stride(op.logits),
                 .columns = op.logits.dim(1),
                 .first = op.first_column,
                 .valid = valid_of(op.valid_columns, op.logits),
                 .gradient = op.gradient};
  cuda::dispatch_float(op.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto launch_kernel = [&](auto kernel) {
      kernel<<<cuda::grid(rows), kThreads, 0, cuda::stream_of(stream)>>>(cuda::pointer<T>(op.logits), f);
    };
    cuda::aligned_rows(op.logits) ? launch_kernel(finish_kernel<T, N>) : launch_kernel(finish_kernel<T, 1>);
  });
  cuda::check_launch("cross_entropy");
  add_losses_kernel<<<1, kLastThreads, 0, cuda::stream_of(stream)>>>(op.loss.as<double>(), f.losses, rows);
  cuda::check_launch("cross_entropy");
}

void run(Cuda, Stream& stream, const CrossEntropy& op) {
  const Index rows = op.logits.dim(0), columns = op.logits.dim(1);
  if (rows == 0) return;
  const ArenaScope scope(stream.workspace());
  const Tensor stats = stream.workspace().allocate({rows, 3});
  const std::size_t row_bytes = static_cast<std::size_t>(columns) * size_of(op.logits.dtype);
  if (!cuda::aligned_rows(op.logits) || row_bytes + sizeof(Stats) * kWarps > shared_memory()) {
    run(Cuda{}, stream, op.first(stats));
    run(Cuda{}, stream, op.second(stats));
    return;
  }
  const Finish f{.losses = stream.workspace().allocate({rows}, DType::f64).as<double>(),
                 .stats = nullptr,
                 .targets = op.targets.as<std::int32_t>(),
                 .weights = op.weights.as<float>(),
                 .scale = op.gradient ? op.scale.as<float>() : nullptr,
                 .ranks = 1,
                 .rows = rows,
                 .stride = cuda::row_stride(op.logits),
                 .columns = columns,
                 .first = 0,
                 .valid = valid_of(op.valid_columns, op.logits),
                 .gradient = op.gradient};
  cuda::dispatch_float(op.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto kernel = fused_kernel<T, N>;
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(row_bytes)),
               "cudaFuncSetAttribute");
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
               "cudaFuncSetAttribute");
    kernel<<<cuda::grid(rows), kThreads, row_bytes, cuda::stream_of(stream)>>>(cuda::pointer<T>(op.logits), f);
  });
  cuda::check_launch("cross_entropy");
  add_losses_kernel<<<1, kLastThreads, 0, cuda::stream_of(stream)>>>(op.loss.as<double>(), f.losses, rows);
  cuda::check_launch("cross_entropy");
}

}  // namespace dstrain
