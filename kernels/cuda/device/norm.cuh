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
  if constexpr (kLayer) {
    args.bias = op.bias.data;
    args.half_bias = op.bias.dtype == DType::bf16;
    args.mean = op.mean.template as<float>();
    wide = wide && aligned_vector(op.bias);
  }
  dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_norm<T, 1>(columns, wide, [&](auto n, auto k, int threads) {
      norm_forward_kernel<kLayer, T, n, k><<<grid(rows), threads, 0, stream_of(stream)>>>(args);
    });
  });
  check_launch(Op::name);
}

// Both norms' gradient.
template <bool kLayer, class Op>
void norm_backward(Stream& stream, const Op& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1), blocks = norm_blocks(rows, columns);
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
      using T = decltype(zero);
      dispatch_norm<T, 2>(columns, wide, [&](auto n, auto k, int threads) {
        norm_backward_kernel<kLayer, T, n, k><<<grid(blocks), threads, 0, stream_of(stream)>>>(args);
      });
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
