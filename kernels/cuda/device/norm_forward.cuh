#pragma once
// Forward of RMSNorm and LayerNorm: one kernel with and without a mean, and LayerNorm's for rows that a warp can hold.

#include "kernels/cuda/device/launch.cuh"
#include "kernels/rstd.h"

namespace dstrain::cuda {

// Sum over the block, every thread gets it, in a fixed order. `scratch` is shared memory of 32 floats, used again only
// after a barrier of the caller's or another call with other memory.
__device__ inline float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  float total = 0;
  for (int w = 0; w < warps; ++w) total += scratch[w];
  return total;
}

struct NormForwardArgs {
  void *y, *sum;
  const void *x, *branch, *weight, *bias;
  float *mean, *rstd;
  Index y_stride, sum_stride, x_stride, branch_stride, columns;
  float eps;
  bool half_weight, half_bias = false;  // they are bf16
};

template <int N>
__device__ inline Vec<float, N> load_weights(const void* w, bool half, Index c) {
  Vec<float, N> out;
  if (half) {
    const auto v = load_vec<N>(static_cast<const __nv_bfloat16*>(w) + c);
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = to_float(v.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = static_cast<const float*>(w)[c + j];
  }
  return out;
}

template <bool kLayer, class T, int N, int K>
__global__ void norm_forward_kernel(NormForwardArgs a) {
  __shared__ float scratch[3][32];
  const Index row = blockIdx.x;
  const T* const x = static_cast<const T*>(a.x) + row * a.x_stride;
  const T* const branch = a.branch ? static_cast<const T*>(a.branch) + row * a.branch_stride : nullptr;
  T* const sum = a.sum ? static_cast<T*>(a.sum) + row * a.sum_stride : nullptr;
  T* const y = static_cast<T*>(a.y) + row * a.y_stride;
  const T* const from = branch ? sum : x;
  const Index step = static_cast<Index>(blockDim.x) * N, first = static_cast<Index>(threadIdx.x) * N;
  constexpr int kKept = K > 0 ? K : 1;
  Vec<T, N> kept[kKept];

  // f(vector, column) for each of this thread's vectors; the first pass also makes the sum.
  const auto pass = [&](bool make, auto&& f) {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (const Index c = first + k * step; c < a.columns) {
          if (make) {
            kept[k] = load_vec<N>(x + c);
            if (branch) {
              const auto b = load_vec<N>(branch + c);
#pragma unroll
              for (int j = 0; j < N; ++j) kept[k].v[j] = from_float<T>(to_float(kept[k].v[j]) + to_float(b.v[j]));
              store_vec<N>(sum + c, kept[k]);
            }
          }
          f(kept[k], c);
        }
    } else {
      for (Index c = first; c < a.columns; c += step) {
        Vec<T, N> v = load_vec<N>((make ? x : from) + c);
        if (make && branch) {
          const auto b = load_vec<N>(branch + c);
#pragma unroll
          for (int j = 0; j < N; ++j) v.v[j] = from_float<T>(to_float(v.v[j]) + to_float(b.v[j]));
          store_vec<N>(sum + c, v);
        }
        f(v, c);
      }
    }
  };

  const float n = static_cast<float>(a.columns);
  float mean = 0, squares = 0;
  if constexpr (kLayer) {
    float total = 0;
    pass(true, [&](const Vec<T, N>& v, Index) {
#pragma unroll
      for (int j = 0; j < N; ++j) total += to_float(v.v[j]);
    });
    mean = block_sum(total, scratch[0]) / n;
  }
  pass(!kLayer, [&](const Vec<T, N>& v, Index) {
#pragma unroll
    for (int j = 0; j < N; ++j) squares += (to_float(v.v[j]) - mean) * (to_float(v.v[j]) - mean);
  });
  const float rstd = or_nan(1.0f / sqrtf(block_sum(squares, scratch[1]) / n + a.eps));
  if (threadIdx.x == 0) {
    a.rstd[row] = rstd;
    if constexpr (kLayer) a.mean[row] = mean;
  }
  pass(false, [&](const Vec<T, N>& v, Index c) {
    const auto w = load_weights<N>(a.weight, a.half_weight, c);
    Vec<T, N> out;
    if constexpr (kLayer) {
      const auto b = load_weights<N>(a.bias, a.half_bias, c);
#pragma unroll
      for (int j = 0; j < N; ++j) out.v[j] = from_float<T>((to_float(v.v[j]) - mean) * rstd * w.v[j] + b.v[j]);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) out.v[j] = from_float<T>(to_float(from_float<T>(to_float(v.v[j]) * rstd)) * w.v[j]);
    }
    store_vec<N>(y + c, out);
  });
}

constexpr int kWarpRows = 4;  // rows of a block of layer_norm_warp_kernel

// Past L1, where weights stay.
__device__ inline uint4 load_once(const void* p) {
  uint4 word;
  asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(__cvta_generic_to_global(p)));
  return word;
}

// LayerNorm's forward with a warp a row, which waits for no block; weights and biases have the dtype T. K: the vectors
// of a row by 32, rounded up.
template <class T, int K>
__global__ void __launch_bounds__(32 * kWarpRows, 5) layer_norm_warp_kernel(NormForwardArgs a, Index rows) {
  constexpr int N = 16 / sizeof(T), kStep = 32 * N;
  const Index row = static_cast<Index>(blockIdx.x) * kWarpRows + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  const Index first = lane * N;
  const auto inside = [&](int k) { return k < K - 1 || first + k * kStep < a.columns; };
  // Words, because taking vectors apart where they are loaded would wait for them.
  uint4 xs[K] = {};
  const T* const x = static_cast<const T*>(a.x) + row * a.x_stride + first;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (inside(k)) xs[k] = load_once(x + k * kStep);
  if (a.branch) {
    uint4 others[K] = {};
    const T* const branch = static_cast<const T*>(a.branch) + row * a.branch_stride + first;
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (inside(k)) others[k] = load_once(branch + k * kStep);
    T* const to = static_cast<T*>(a.sum) + row * a.sum_stride + first;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      auto sum = floats_of<T, N>(xs[k]);
      const auto other = floats_of<T, N>(others[k]);
#pragma unroll
      for (int j = 0; j < N; ++j) sum.v[j] += other.v[j];
      const Vec<T, N> kept = rounded<T>(sum);
      xs[k] = *reinterpret_cast<const uint4*>(&kept);
      if (inside(k)) store_vec<N>(to + k * kStep, kept);
    }
  }
  // A vector ahead of those that they are needed for.
  uint4 weight = {}, bias = {};
  const auto load_affine = [&](int k) {
    if (!inside(k)) return;
    weight = load_word<N>(static_cast<const T*>(a.weight) + first + k * kStep);
    bias = load_word<N>(static_cast<const T*>(a.bias) + first + k * kStep);
  };
  load_affine(0);
  const float n = static_cast<float>(a.columns);
  float total = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const auto v = floats_of<T, N>(xs[k]);
#pragma unroll
    for (int j = 0; j < N; ++j) total += v.v[j];
  }
  const float mean = warp_sum(total) / n;
#pragma unroll
  for (int k = 0; k < K; ++k) forget(xs[k]);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const auto v = floats_of<T, N>(xs[k]);
    float part = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) part += (v.v[j] - mean) * (v.v[j] - mean);
    if (inside(k)) squares += part;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) forget(xs[k]);
  const float rstd = or_nan(1.0f / sqrtf(warp_sum(squares) / n + a.eps));
  if (lane == 0) {
    a.rstd[row] = rstd;
    a.mean[row] = mean;
  }
  T* const y = static_cast<T*>(a.y) + row * a.y_stride + first;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    auto out = floats_of<T, N>(xs[k]);
    const auto w = floats_of<T, N>(weight), b = floats_of<T, N>(bias);
    if (k + 1 < K) load_affine(k + 1);
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = (out.v[j] - mean) * rstd * w.v[j] + b.v[j];
    if (inside(k)) store_vec<N>(y + k * kStep, rounded<T>(out));
  }
}

}  // namespace dstrain::cuda
