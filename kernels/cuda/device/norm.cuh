#pragma once
// RMSNorm and LayerNorm: the same kernels with and without a mean. A block takes a row, a thread N neighbouring
// elements K times; K = 0: any number of times, read again from memory instead of kept in registers.

#include "kernels/cuda/device/column_sums.cuh"
#include "kernels/norm_blocks.h"
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

// The threads of a block for rows of `columns` in vectors of n, k a thread.
inline int norm_threads(Index columns, int n, int k) {
  return static_cast<int>(std::max<Index>(32, div_up(div_up(columns, n * k), 32) * 32));
}

// Calls f(vector width constant, vectors a thread constant, threads) for the row length. `wide`: all rows are aligned.
// kLeast: vectors a thread at least.
template <class T, int kLeast, class F>
void dispatch_norm(Index columns, bool wide, F&& f) {
  using std::integral_constant;
  constexpr int N = 16 / sizeof(T);
  if (wide) {
    if (kLeast == 1 && columns <= 256 * N)
      return f(integral_constant<int, N>{}, integral_constant<int, 1>{}, norm_threads(columns, N, 1));
    if (columns <= 512 * N)
      return f(integral_constant<int, N>{}, integral_constant<int, 2>{}, norm_threads(columns, N, 2));
    return f(integral_constant<int, N>{}, integral_constant<int, 0>{}, 512);
  }
  f(integral_constant<int, 1>{}, integral_constant<int, 0>{},
    static_cast<int>(std::min<Index>(512, norm_threads(columns, 1, 1))));
}

// `match`: weights and biases have the dtype T.
template <bool kLayer, class T>
void launch_norm_forward(cudaStream_t queue, const NormForwardArgs& a, Index rows, bool wide, bool match) {
  constexpr int kVectors = 32 * 16 / sizeof(T);  // columns of a warp's vectors
  if constexpr (kLayer) {
    if (wide && match && a.columns <= 8 * kVectors) {
      const auto start = [&](auto k) {
        layer_norm_warp_kernel<T, k><<<grid(div_up(rows, kWarpRows)), 32 * kWarpRows, 0, queue>>>(a, rows);
      };
      return [&]<int... k>(std::integer_sequence<int, k...>) {
        ((div_up(a.columns, kVectors) == k + 1 ? start(std::integral_constant<int, k + 1>{}) : void()), ...);
      }
      (std::make_integer_sequence<int, 8>{});
    }
  }
  dispatch_norm<T, 1>(a.columns, wide, [&](auto n, auto k, int threads) {
    norm_forward_kernel<kLayer, T, n, k><<<grid(rows), threads, 0, queue>>>(a);
  });
}

// `wide`: all rows are aligned and weights have the dtype T.
template <bool kLayer, class T>
void launch_norm_backward(cudaStream_t queue, const NormBackwardArgs& a, Index blocks, bool wide) {
  constexpr int N = 16 / sizeof(T);
  if (wide && a.columns <= 256 * N) {
    norm_pairs_backward_kernel<kLayer, T><<<grid(blocks), norm_threads(a.columns, N, 1), 0, queue>>>(a);
    return;
  }
  dispatch_norm<T, 2>(a.columns, wide, [&](auto n, auto k, int threads) {
    norm_backward_kernel<kLayer, T, n, k><<<grid(blocks), threads, 0, queue>>>(a);
  });
}

inline bool aligned_vector(const Tensor& t) {
  return !t.defined() || reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0;
}
inline bool aligned_optional(const Tensor& t) { return !t.defined() || aligned_rows(t); }

// Both norms' forward: Op is RmsNormForward, or LayerNormForward when kLayer.
template <bool kLayer, class Op>
void norm_forward(Stream& stream, const Op& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  if (rows == 0) return;
  NormForwardArgs args{.y = op.y.data,
                       .sum = op.sum.data,
                       .x = op.x.data,
                       .branch = op.branch.data,
                       .weight = op.weight.data,
                       .rstd = op.rstd.template as<float>(),
                       .y_stride = row_stride(op.y),
                       .sum_stride = row_stride(op.sum),
                       .x_stride = row_stride(op.x),
                       .branch_stride = row_stride(op.branch),
                       .columns = columns,
                       .eps = op.eps,
                       .half_weight = op.weight.dtype == DType::bf16};
  bool wide = aligned_rows(op.x) && aligned_rows(op.y) && aligned_optional(op.branch) && aligned_optional(op.sum) &&
              aligned_vector(op.weight);
  bool match = op.weight.dtype == op.x.dtype;
  if constexpr (kLayer) {
    args.bias = op.bias.data;
    args.half_bias = op.bias.dtype == DType::bf16;
    args.mean = op.mean.template as<float>();
    wide = wide && aligned_vector(op.bias);
    match = match && op.bias.dtype == op.x.dtype;
  }
  dispatch_float(op.x.dtype, [&](auto zero) {
    launch_norm_forward<kLayer, decltype(zero)>(stream_of(stream), args, rows, wide, match);
  });
  check_launch(Op::name);
}

// Both norms' gradient.
template <bool kLayer, class Op>
void norm_backward(Stream& stream, const Op& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1), blocks = norm_blocks(op.x);
  const ArenaScope scope(stream.workspace());
  float* const partial = stream.workspace().allocate({(kLayer ? 2 : 1) * blocks * columns}).template as<float>();
  NormBackwardArgs args{.dx = op.dx.data,
                        .dy = op.dy.data,
                        .x = op.x.data,
                        .dresidual = op.dresidual.data,
                        .weight = op.weight.data,
                        .rstd = op.rstd.template as<float>(),
                        .dweight = partial,
                        .dx_stride = row_stride(op.dx),
                        .dy_stride = row_stride(op.dy),
                        .x_stride = row_stride(op.x),
                        .dresidual_stride = row_stride(op.dresidual),
                        .rows = rows,
                        .columns = columns,
                        .half_weight = op.weight.dtype == DType::bf16};
  if constexpr (kLayer) {
    args.mean = op.mean.template as<float>();
    args.dbias = partial + blocks * columns;
  }
  const bool wide = aligned_rows(op.x) && aligned_rows(op.dy) && aligned_rows(op.dx) &&
                    aligned_optional(op.dresidual) && aligned_vector(op.weight) && op.weight.dtype == op.x.dtype;
  if (rows > 0) {
    dispatch_float(op.x.dtype, [&](auto zero) {
      launch_norm_backward<kLayer, decltype(zero)>(stream_of(stream), args, blocks, wide);
    });
    check_launch(Op::name);
  }
  if constexpr (kLayer)
    add_chunks(stream, {op.dweight.template as<float>(), op.dbias.template as<float>()}, partial, blocks, columns,
               op.write);
  else
    add_chunks(stream, {op.dweight.template as<float>()}, partial, blocks, columns, op.write);
}

}  // namespace dstrain::cuda
