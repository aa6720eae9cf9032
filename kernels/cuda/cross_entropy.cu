#include <cuda_pipeline.h>

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 512;

// 2^x, two units in the last place of a float32 off, in one instruction: results that are not normal numbers become 0,
// which exp2f and __expf keep at the price of three more. For bfloat16 that is plenty.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.44269504f;

// exp(x - most).
template <class T>
__device__ inline float exp_of(float x, float most) {
  if constexpr (sizeof(T) == 4)
    return expf(x - most);
  else
    return fast_exp2((x - most) * kLog2E);
}

__device__ inline float shift_of(float most) { return most == -INFINITY ? 0.0f : most; }

// The maximum of a row and the sum of exp(x - maximum). With a maximum of -inf the sum is 0, or NaN when a value is:
// NaN must reach the loss.
struct Stats {
  float most, sum;
};

// Those of a warp, by `power`, exp for values whose maximum is the second argument; the order is fixed.
template <class F>
__device__ inline Stats warp_stats(Stats s, F&& power) {
  const float most = cuda::warp_max(s.most);
  return {most, cuda::warp_sum(s.sum * power(s.most, shift_of(most)))};
}

// Those of a block of at most 32 warps. `parts` is shared memory of 32, used again only after a barrier of the caller's
// or another call with other memory.
template <class F>
__device__ inline Stats block_stats(Stats s, Stats* parts, F&& power) {
  s = warp_stats(s, power);
  const int lane = threadIdx.x % 32;
  if (lane == 0) parts[threadIdx.x / 32] = s;
  __syncthreads();
  return warp_stats(lane * 32 < blockDim.x ? parts[lane] : Stats{-INFINITY, 0.0f}, power);
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
  __shared__ Stats parts[32];
  const Stats s = block_stats(row_stats<T, N>(x, valid), parts, exp_of<T>);
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

// What a row kept in shared memory is seen through: powers of 2 or, for float32, of e. A shift is the maximum times
// `unit`, rounded, and stands for itself from there on: its rounding is in the sum and in what is divided by it alike.
template <class T>
struct Power {
  static constexpr float unit = sizeof(T) == 4 ? 1.0f : kLog2E;
  static constexpr double of_unit = sizeof(T) == 4 ? 1.0 : 0.69314718055994531;  // its base's logarithm
  // base^(x unit - shift)
  static __device__ float of(float x, float shift) {
    if constexpr (sizeof(T) == 4)
      return expf(x - shift);
    else
      return fast_exp2(fmaf(x, unit, -shift));
  }
  // base^(a - b) of two shifts.
  static __device__ float between(float a, float b) {
    if constexpr (sizeof(T) == 4)
      return expf(a - b);
    else
      return fast_exp2(a - b);
  }
};

// The largest; NaN only when all are.
template <class T, int N>
__device__ inline float largest(const cuda::Word<N * sizeof(T)>& word) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(&word);
    __nv_bfloat162 most = pairs[0];
#pragma unroll
    for (int j = 1; j < N / 2; ++j) most = __hmax2(most, pairs[j]);
    return cuda::to_float(__hmax(most.x, most.y));
  } else {
    const auto v = cuda::floats_of<T, N>(word);
    float most = v.v[0];
#pragma unroll
    for (int j = 1; j < N; ++j) most = fmaxf(most, v.v[j]);
    return most;
  }
}

// Until all but the last kPending of this thread's groups of copies are there. __pipeline_wait_prior does not tell the
// compiler that memory changes.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

constexpr std::size_t kPartsBytes = 2 * 32 * sizeof(Stats), kBlockBytes = kPartsBytes + 1024;  // beside a row

// Rows are read once and kept in shared memory, where each thread comes back to the vectors that it copied itself. A
// block takes every gridDim.x-th row. When a vector's gradient is written, the next row's is asked for in its place,
// and the one asked for kAhead vectors before is looked at: loads, stores and exponentials run beside each other all
// the time, but for a block's sum between two rows.
template <class T, int N, int kMostThreads, int kAhead>
__global__ void __launch_bounds__(kMostThreads) fused_kernel(T* logits, Finish f) {
  using P = Power<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Stats parts[2][32];
  T* const kept = reinterpret_cast<T*>(memory);  // (columns)
  const int step = static_cast<int>(blockDim.x) * N, first = static_cast<int>(threadIdx.x) * N;
  const int columns = static_cast<int>(f.columns), valid = static_cast<int>(f.valid);
  const int vectors = max(0, (valid - first + step - 1) / step);  // this thread's that are not all padding

  Stats mine{-INFINITY, 0.0f};  // its maximum is a shift
  const auto look = [&](T* slot) {
    // Padding is as -inf, whose power is 0.
    if (slot + N > kept + valid)
      for (T* at = kept + valid; at < slot + N; ++at) *at = cuda::from_float<T>(-INFINITY);
    const auto word = cuda::load_word<N>(slot);
    const auto v = cuda::floats_of<T, N>(word);
    const float most = fmaxf(mine.most, largest<T, N>(word) * P::unit), shift = shift_of(most);
    float sum = mine.sum * P::between(mine.most, shift);
#pragma unroll
    for (const float x : v.v) sum += P::of(x, shift);
    mine = {most, sum};
  };
  const auto ask = [&](T* slot, const T* from) { __pipeline_memcpy_async(slot, from, N * sizeof(T)); };

  Index row = blockIdx.x;
  float weight = row < f.rows ? f.weights[row] : 0.0f;
  if (weight != 0) {
    const T* const x = logits + row * f.stride;
    for (int i = 0, c = first; i < vectors; ++i, c += step) ask(kept + c, x + c);
    __pipeline_commit();
    wait_copies<0>();
    for (int i = 0; i < vectors; ++i) look(kept + first + i * step);
  }
  int turn = 0;
  while (row < f.rows) {
    T* const x = logits + row * f.stride;
    const bool live = weight != 0;
    const Index next = row + gridDim.x;
    const float next_weight = next < f.rows ? f.weights[next] : 0.0f;
    float scaled = 0, shift = 0, target_value = 0;
    Index target = -1;
    if (live) {
      const Stats all = block_stats(mine, parts[turn], P::between);
      turn ^= 1;
      const float factor = f.gradient ? *f.scale * weight : 0.0f;
      scaled = factor / all.sum, shift = all.most;
      target = f.targets[row];
      const bool here = target >= 0 && target < valid;
      // By the thread that keeps the target, if any does.
      if (here ? target / N % blockDim.x == threadIdx.x : threadIdx.x == 0) {
        const double log_sum = log(static_cast<double>(all.sum));
        const double logit = here ? cuda::to_float(kept[target]) * static_cast<double>(P::unit) : 0.0;
        const double log_softmax = (logit - all.most) * P::of_unit - log_sum;
        f.losses[row] = -weight * log_softmax;
        // expm1 keeps the digits of softmax - 1 when the target is nearly certain.
        target_value = factor * expm1f(static_cast<float>(log_softmax));
        if (!here) target = -1;
      } else {
        target = -1;
      }
    } else if (threadIdx.x == 0) {
      f.losses[row] = 0;
    }

    mine = {-INFINITY, 0.0f};
    T *to = x + first, *slot = kept + first;
    const T* from = logits + next * f.stride + first;
    for (int i = 0; i < vectors; ++i, to += step, slot += step, from += step) {
      if (f.gradient) {
        cuda::Vec<float, N> d{};
        if (live) {
          d = cuda::floats_of<T, N>(cuda::load_word<N>(slot));
#pragma unroll
          for (float& e : d.v) e = scaled * P::of(e, shift);
        }
        cuda::store_vec<N>(to, cuda::rounded<T>(d));
      }
      if (next_weight == 0) continue;
      ask(slot, from);
      __pipeline_commit();
      if (i < kAhead) continue;
      wait_copies<kAhead>();
      look(slot - kAhead * step);
    }
    if (next_weight != 0) {
      wait_copies<0>();
      for (int i = max(0, vectors - kAhead); i < vectors; ++i) look(kept + first + i * step);
    }
    if (f.gradient) {
      if (to - step + N > x + valid && vectors > 0)
        for (T* at = x + valid; at < to - step + N; ++at) *at = cuda::from_float<T>(0.0f);
      for (; to < x + columns; to += step) cuda::store_vec<N>(to, cuda::Vec<T, N>{});
      if (target >= 0) x[target] = cuda::from_float<T>(target_value);
    }
    row = next, weight = next_weight;
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// As many blocks as the device holds at once: two or more a multiprocessor, or a wide one where a row leaves no room.
template <class T>
void launch_fused(cudaStream_t queue, T* logits, const Finish& f, std::size_t row_bytes) {
  constexpr int N = 16 / sizeof(T), kAhead = 4, kWide = 1024;
  const auto start = [&](auto kernel, int threads) {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(row_bytes)),
               "cudaFuncSetAttribute");
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
               "cudaFuncSetAttribute");
    int blocks = 0;
    cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, row_bytes),
               "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    const Index most = static_cast<Index>(std::max(blocks, 1)) * attribute(cudaDevAttrMultiProcessorCount);
    kernel<<<cuda::grid(std::min(f.rows, most)), threads, row_bytes, queue>>>(logits, f);
  };
  const std::size_t half = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)) / 2;
  if (row_bytes + kBlockBytes <= half)
    start(fused_kernel<T, N, kThreads, kAhead>, kThreads);
  else
    start(fused_kernel<T, N, kWide, kAhead>, kWide);
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
  if (!cuda::aligned_rows(op.logits) ||
      row_bytes + kPartsBytes > static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
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
    launch_fused(cuda::stream_of(stream), cuda::pointer<T>(op.logits), f, row_bytes);
  });
  cuda::check_launch("cross_entropy");
  add_losses_kernel<<<1, kLastThreads, 0, cuda::stream_of(stream)>>>(op.loss.as<double>(), f.losses, rows);
  cuda::check_launch("cross_entropy");
}

}  // namespace dstrain
