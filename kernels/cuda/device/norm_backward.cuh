#pragma once
// Gradients of RMSNorm and LayerNorm, with and without a mean; each block leaves sums over its rows for the weights.

#include "kernels/cuda/device/norm_forward.cuh"

namespace dstrain::cuda {

struct NormBackwardArgs {
  void* dx;
  const void *dy, *x, *dresidual, *weight;
  const float *mean, *rstd;
  float *dweight, *dbias;  // (blocks, columns) partial sums
  Index dx_stride, dy_stride, x_stride, dresidual_stride, rows, columns;
  bool half_weight;
};

// Sums over the block of one value or of both, as block_sum. `scratch` holds kWarps, zero where the block has no warp.
template <int kWarps, bool kBoth>
__device__ inline float2 block_sums(float x, float y, float2* scratch) {
  x = warp_sum(x);
  if constexpr (kBoth) y = warp_sum(y);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = {x, y};
  __syncthreads();
  float2 total = {0, 0};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total.x += scratch[w].x, total.y += scratch[w].y;
  return total;
}

// With K > 0 weights have the dtype T and stay in registers, as a row does. Rows go round the blocks, so that
// neighbours are read together.
template <bool kLayer, class T, int N, int K>
__global__ void __launch_bounds__(K > 0 ? 256 : 512, 2) norm_backward_kernel(NormBackwardArgs a) {
  constexpr int kWarps = K > 0 ? 8 : 16, kKept = K > 0 ? K : 1;
  __shared__ float2 scratch[2][kWarps];
  if (threadIdx.x < 2 * kWarps) scratch[threadIdx.x / kWarps][threadIdx.x % kWarps] = {0, 0};
  __syncthreads();
  const Index step = static_cast<Index>(blockDim.x) * N, first = static_cast<Index>(threadIdx.x) * N;
  float* const dweight = a.dweight + blockIdx.x * a.columns;
  float* const dbias = kLayer ? a.dbias + blockIdx.x * a.columns : nullptr;
  float weight_sums[kKept][N] = {}, bias_sums[kKept][N] = {};
  Vec<T, N> weights[kKept];
  if constexpr (K > 0) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (const Index c = first + k * step; c < a.columns)
        weights[k] = load_vec<N>(static_cast<const T*>(a.weight) + c);
  } else {
    for (Index c = first; c < a.columns; c += step)
      for (int j = 0; j < N; ++j) {
        dweight[c + j] = 0;
        if constexpr (kLayer) dbias[c + j] = 0;
      }
  }
  const auto weights_at = [&](int k, Index c) {
    if constexpr (K > 0) {
      Vec<float, N> w;
#pragma unroll
      for (int j = 0; j < N; ++j) w.v[j] = to_float(weights[k].v[j]);
      return w;
    } else {
      return load_weights<N>(a.weight, a.half_weight, c);
    }
  };
  const float n = static_cast<float>(a.columns);
  // Addresses are walked: made anew for each row they would be a fifth of the instructions.
  const Index begin = blockIdx.x, hop = gridDim.x;
  const T* x = static_cast<const T*>(a.x) + begin * a.x_stride;
  const T* dy = static_cast<const T*>(a.dy) + begin * a.dy_stride;
  const T* residual = static_cast<const T*>(a.dresidual) + begin * a.dresidual_stride;
  T* dx = static_cast<T*>(a.dx) + begin * a.dx_stride;
  const Index x_hop = hop * a.x_stride, dy_hop = hop * a.dy_stride, dx_hop = hop * a.dx_stride,
              residual_hop = hop * a.dresidual_stride;
  int turn = 0;
  for (Index row = begin; row < a.rows; row += hop, turn ^= 1) {
    // All of a row's loads are under way together: words, because taking them apart would wait for them.
    const float rstd = a.rstd[row], mean = kLayer ? a.mean[row] : 0.0f;
    Word<N * sizeof(T)> xs[kKept] = {}, dys[kKept] = {}, residuals[kKept] = {};
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const Index c = first + k * step;
        const bool inside = c < a.columns;
        if (inside) xs[k] = load_word<N>(x + c);
        if (inside) dys[k] = load_word<N>(dy + c);
        if (inside && a.dresidual) residuals[k] = load_word<N>(residual + c);
      }
    }
    float total = 0, dot = 0;
    const auto look = [&](const Vec<T, N>& vx, const Vec<T, N>& vd, const Vec<float, N>& w, float* ws, float* bs) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float d = to_float(vd.v[j]), scaled = d * ((to_float(vx.v[j]) - mean) * rstd);
        if constexpr (kLayer) total += d * w.v[j];
        dot += scaled * w.v[j];
        ws[j] += scaled;
        if constexpr (kLayer) bs[j] += d;
      }
    };
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (const Index c = first + k * step; c < a.columns)
          look(vec_of<T, N>(xs[k]), vec_of<T, N>(dys[k]), weights_at(k, c), weight_sums[k], bias_sums[k]);
    } else {
      for (Index c = first; c < a.columns; c += step)
        look(load_vec<N>(x + c), load_vec<N>(dy + c), weights_at(0, c), dweight + c, kLayer ? dbias + c : nullptr);
    }
    const float2 sums = block_sums<kWarps, kLayer>(dot, total, scratch[turn]);
    const float mean_gn = sums.x / n, mean_g = kLayer ? sums.y / n : 0.0f;
    const auto write = [&](const Vec<T, N>& vx, const Vec<T, N>& vd, const Vec<T, N>& r, const Vec<float, N>& w,
                           Index c) {
      Vec<float, N> g;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float normalised = (to_float(vx.v[j]) - mean) * rstd;
        const float d = rstd * (to_float(vd.v[j]) * w.v[j] - mean_g - normalised * mean_gn);
        g.v[j] = d + to_float(r.v[j]);
      }
      store_vec<N>(dx + c, rounded<T>(g));
    };
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (const Index c = first + k * step; c < a.columns)
          write(vec_of<T, N>(xs[k]), vec_of<T, N>(dys[k]), vec_of<T, N>(residuals[k]), weights_at(k, c), c);
    } else {
      for (Index c = first; c < a.columns; c += step)
        write(load_vec<N>(x + c), load_vec<N>(dy + c), a.dresidual ? load_vec<N>(residual + c) : Vec<T, N>{},
              weights_at(0, c), c);
    }
    x += x_hop;
    dy += dy_hop;
    residual += residual_hop;
    dx += dx_hop;
  }
  if constexpr (K > 0) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (const Index c = first + k * step; c < a.columns)
#pragma unroll
        for (int j = 0; j < N; ++j) {
          dweight[c + j] = weight_sums[k][j];
          if constexpr (kLayer) dbias[c + j] = bias_sums[k][j];
        }
  }
}

// Backward for rows of at most 256 vectors, one a thread, and weights of the dtype T: two rows at a time, which are
// loaded together and need one barrier.
template <bool kLayer, class T>
__global__ void __launch_bounds__(256, 3) norm_pairs_backward_kernel(NormBackwardArgs a) {
  constexpr int N = 16 / sizeof(T), R = 2, kWarps = 8, M = (kLayer ? 2 : 1) * R;
  __shared__ float scratch[2][kWarps][M];  // 0 where the block has no warp
  for (int i = threadIdx.x; i < 2 * kWarps * M; i += blockDim.x) (&scratch[0][0][0])[i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Index c = static_cast<Index>(threadIdx.x) * N;
  const bool inside = c < a.columns;
  float weight_sums[N] = {}, bias_sums[N] = {};
  uint4 weights = {};
  if (inside) weights = load_word<N>(static_cast<const T*>(a.weight) + c);
  const float part = 1.0f / static_cast<float>(a.columns);
  const Index hop = static_cast<Index>(gridDim.x) * R;
  int turn = 0;
  for (Index row = static_cast<Index>(blockIdx.x) * R; row < a.rows; row += hop, turn ^= 1) {
    // Words, because taking vectors apart would wait for them; what is beyond the matrix is 0. Scalars come first:
    // asked for between the two rows, they are waited for before the second row is asked for.
    uint4 xs[R] = {}, dys[R] = {}, residuals[R] = {};
    float mean[R] = {}, rstd[R] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (row + r < a.rows) {
        rstd[r] = a.rstd[row + r];
        if constexpr (kLayer) mean[r] = a.mean[row + r];
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const bool load = inside && row + r < a.rows;
      if (load) xs[r] = load_word<N>(static_cast<const T*>(a.x) + (row + r) * a.x_stride + c);
      if (load) dys[r] = load_word<N>(static_cast<const T*>(a.dy) + (row + r) * a.dy_stride + c);
      if (load && a.dresidual)
        residuals[r] = load_word<N>(static_cast<const T*>(a.dresidual) + (row + r) * a.dresidual_stride + c);
    }
    float parts[M] = {};  // R sums of d w (x - mean), R of d w
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const auto vx = vec_of<T, N>(xs[r]), vd = vec_of<T, N>(dys[r]), vw = vec_of<T, N>(weights);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float d = to_float(vd.v[j]), centred = to_float(vx.v[j]) - mean[r], g = d * to_float(vw.v[j]);
        weight_sums[j] += (d * rstd[r]) * centred;
        parts[r] += g * centred;
        if constexpr (kLayer) {
          bias_sums[j] += d;
          parts[R + r] += g;
        }
      }
    }
    forget(weights);
#pragma unroll
    for (int r = 0; r < R; ++r) forget(xs[r]), forget(dys[r]);
    const float sum = warp_sums(parts);
    if (lane % (32 / M) == 0) scratch[turn][warp][lane / (32 / M)] = sum;
    __syncthreads();
    float totals[M] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
#pragma unroll
      for (int m = 0; m < M; ++m) totals[m] += scratch[turn][w][m];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (row + r >= a.rows) break;
      // dx = rstd (d w - mean(d w) - n mean(d w n)) + dresidual, n = (x - mean) rstd
      const float slope = rstd[r] * (rstd[r] * (rstd[r] * (totals[r] * part)));
      const float shift = kLayer ? rstd[r] * (totals[kLayer ? R + r : 0] * part) : 0.0f;
      if (!inside) continue;
      const auto vx = vec_of<T, N>(xs[r]), vd = vec_of<T, N>(dys[r]), vw = vec_of<T, N>(weights),
                 vr = vec_of<T, N>(residuals[r]);
      Vec<float, N> g;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float d = to_float(vd.v[j]) * to_float(vw.v[j]) * rstd[r] - shift;
        g.v[j] = d - (to_float(vx.v[j]) - mean[r]) * slope + to_float(vr.v[j]);
      }
      store_vec<N>(static_cast<T*>(a.dx) + (row + r) * a.dx_stride + c, rounded<T>(g));
    }
  }
  const auto write_sums = [&](float* to, const float(&sums)[N]) {
    if (!inside) return;
#pragma unroll
    for (int j = 0; j < N; j += 4)
      store_vec<4>(to + blockIdx.x * a.columns + c + j, Vec<float, 4>{sums[j], sums[j + 1], sums[j + 2], sums[j + 3]});
  };
  write_sums(a.dweight, weight_sums);
  if constexpr (kLayer) write_sums(a.dbias, bias_sums);
}

}  // namespace dstrain::cuda
