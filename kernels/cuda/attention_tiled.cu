#include "kernels/cuda/attention_tiled.h"

#include "kernels/cuda/attention_tensor_cores.cuh"

namespace dstrain::cuda {

namespace {

constexpr int kSide = 16, kThreads = kSide * kSide;  // a block is 16 x 16 threads

// Rows [begin, begin + Tile) of one head into shared memory as f32, rows of width + 1; rows past `end` are zeros.
template <class T, int Tile>
__device__ inline void load_tile(float* to, const Heads& from, Index b, Index h, Index begin, Index end, Index width) {
  for (Index i = threadIdx.x; i < Tile * width; i += kThreads) {
    const Index r = i / width, c = i % width;
    to[r * (width + 1) + c] = begin + r < end ? to_float(from.at<const T>(b, begin + r, h)[c]) : 0.0f;
  }
}

// out[i][j] = sum over c of a[y + 16 i][c] * b[x + 16 j][c]; rows of width + 1.
template <int R>
__device__ inline void products(float (&out)[R][R], const float* a, const float* b, Index width, int y, int x) {
#pragma unroll
  for (int i = 0; i < R; ++i)
#pragma unroll
    for (int j = 0; j < R; ++j) out[i][j] = 0;
  for (Index c = 0; c < width; ++c) {
    float left[R], right[R];
#pragma unroll
    for (int i = 0; i < R; ++i) left[i] = a[(y + kSide * i) * (width + 1) + c];
#pragma unroll
    for (int j = 0; j < R; ++j) right[j] = b[(x + kSide * j) * (width + 1) + c];
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int j = 0; j < R; ++j) out[i][j] = fmaf(left[i], right[j], out[i][j]);
  }
}

// sums[i][k] += sum over r of m[y + 16 i][r] * b[r][x + 16 k], m (Tile, Tile + 1), b rows of width + 1. Transposed: of
// m[r][y + 16 i].
template <int R, int K, bool kTransposed>
__device__ inline void add_products(float (&sums)[R][K], const float* m, const float* b, Index width, int y, int x) {
  constexpr int Tile = R * kSide;
  for (int r = 0; r < Tile; ++r) {
    float left[R];
#pragma unroll
    for (int i = 0; i < R; ++i)
      left[i] = kTransposed ? m[r * (Tile + 1) + y + kSide * i] : m[(y + kSide * i) * (Tile + 1) + r];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Index c = x + kSide * k;
      if (c >= width) continue;
      const float right = b[r * (width + 1) + c];
#pragma unroll
      for (int i = 0; i < R; ++i) sums[i][k] = fmaf(left[i], right, sums[i][k]);
    }
  }
}

__device__ inline float side_max(float v) {
  for (int d = kSide / 2; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d, kSide));
  return v;
}
__device__ inline float side_sum(float v) {
  for (int d = kSide / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d, kSide);
  return v;
}

template <class T, int R, int K>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(AttentionArgs s, Heads o, float* lse, Heads q, Heads k, Heads v) {
  constexpr int Tile = R * kSide;
  extern __shared__ float memory[];
  float* const q_tile = memory;
  float* const k_tile = q_tile + Tile * (s.size + 1);
  float* const v_tile = k_tile + Tile * (s.size + 1);
  float* const p_tile = v_tile + Tile * (s.value_size + 1);
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const Index tiles = div_up(s.queries, Tile);
  const Index tile = blockIdx.x % tiles, h = blockIdx.x / tiles % s.heads, b = blockIdx.x / tiles / s.heads;
  const Index first = tile * Tile, kh = h / (s.heads / s.key_heads);
  load_tile<T, Tile>(q_tile, q, b, h, first, s.queries, s.size);
  float most[R], total[R], sums[R][K] = {};
#pragma unroll
  for (int i = 0; i < R; ++i) most[i] = -INFINITY, total[i] = 0;
  for (Index begin = key_begin(s, b, first, Tile); begin < key_end(s, first, Tile); begin += Tile) {
    __syncthreads();
    load_tile<T, Tile>(k_tile, k, b, kh, begin, s.keys, s.size);
    load_tile<T, Tile>(v_tile, v, b, kh, begin, s.keys, s.value_size);
    __syncthreads();
    float scores[R][R];
    products<R>(scores, q_tile, k_tile, s.size, y, x);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const Index query = first + y + kSide * i;
      float best = most[i];
#pragma unroll
      for (int j = 0; j < R; ++j) {
        const Index key = begin + x + kSide * j;
        scores[i][j] = seen(s, b, query, key) ? scores[i][j] * s.scale : -INFINITY;
        best = fmaxf(best, scores[i][j]);
      }
      best = side_max(best);
      const float shift = best == -INFINITY ? 0.0f : best;
      const float rescale = expf(most[i] - shift);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < R; ++j) {
        const Index key = begin + x + kSide * j;
        const float e = expf(scores[i][j] - shift);
        sum += e;
        p_tile[(y + kSide * i) * (Tile + 1) + x + kSide * j] = e == 0 ? 0.0f : e * kept(s, b, h, query, key);
      }
      total[i] = total[i] * rescale + side_sum(sum);
      most[i] = best;
#pragma unroll
      for (int c = 0; c < K; ++c) sums[i][c] *= rescale;
    }
    __syncthreads();
    add_products<R, K, false>(sums, p_tile, v_tile, s.value_size, y, x);
  }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const Index query = first + y + kSide * i;
    if (query >= s.queries) continue;
    T* const to = o.at<T>(b, query, h);
    const float inverse = total[i] > 0 ? 1.0f / total[i] : 0.0f;
#pragma unroll
    for (int c = 0; c < K; ++c)
      if (x + kSide * c < s.value_size) to[x + kSide * c] = from_float<T>(sums[i][c] * inverse);
    if (x == 0) lse[(b * s.heads + h) * s.queries + query] = total[i] > 0 ? most[i] + logf(total[i]) : -INFINITY;
  }
}

// Probabilities and the gradients of scores of a tile: p with what dropout kept, and ds = p (dp - delta).
template <int R>
__device__ inline void score_gradients(const AttentionArgs& s, const AttentionGradient& g, Index b, Index h,
                                       Index query_begin, Index key_begin, const float* q_tile, const float* k_tile,
                                       const float* dout_tile, const float* v_tile, int y, int x, float (&p)[R][R],
                                       float (&ds)[R][R]) {
  products<R>(p, q_tile, k_tile, s.size, y, x);
  products<R>(ds, dout_tile, v_tile, s.value_size, y, x);
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const Index query = query_begin + y + kSide * i;
    const Index at = (b * s.heads + h) * s.queries + query;
    const float log_sum = query < s.queries ? g.lse[at] : 0.0f, delta = query < s.queries ? g.delta[at] : 0.0f;
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const Index key = key_begin + x + kSide * j;
      const float probability = seen(s, b, query, key) ? expf(p[i][j] * s.scale - log_sum) : 0.0f;
      const float keep = probability == 0 ? 0.0f : kept(s, b, h, query, key);
      ds[i][j] = probability * (keep * ds[i][j] - delta);
      p[i][j] = probability * keep;
    }
  }
}

template <int R>
__device__ inline void put_tile(float* to, const float (&m)[R][R], int y, int x) {
  constexpr int Tile = R * kSide;
#pragma unroll
  for (int i = 0; i < R; ++i)
#pragma unroll
    for (int j = 0; j < R; ++j) to[(y + kSide * i) * (Tile + 1) + x + kSide * j] = m[i][j];
}

template <class T, int R, int K>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(AttentionArgs s, AttentionGradient g) {
  constexpr int Tile = R * kSide;
  extern __shared__ float memory[];
  float* const q_tile = memory;
  float* const k_tile = q_tile + Tile * (s.size + 1);
  float* const dout_tile = k_tile + Tile * (s.size + 1);
  float* const v_tile = dout_tile + Tile * (s.value_size + 1);
  float* const s_tile = v_tile + Tile * (s.value_size + 1);
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const Index tiles = div_up(s.queries, Tile);
  const Index tile = blockIdx.x % tiles, h = blockIdx.x / tiles % s.heads, b = blockIdx.x / tiles / s.heads;
  const Index first = tile * Tile, kh = h / (s.heads / s.key_heads);
  load_tile<T, Tile>(q_tile, g.q, b, h, first, s.queries, s.size);
  load_tile<T, Tile>(dout_tile, g.dout, b, h, first, s.queries, s.value_size);
  float sums[R][K] = {};
  for (Index begin = key_begin(s, b, first, Tile); begin < key_end(s, first, Tile); begin += Tile) {
    __syncthreads();
    load_tile<T, Tile>(k_tile, g.k, b, kh, begin, s.keys, s.size);
    load_tile<T, Tile>(v_tile, g.v, b, kh, begin, s.keys, s.value_size);
    __syncthreads();
    float p[R][R], ds[R][R];
    score_gradients<R>(s, g, b, h, first, begin, q_tile, k_tile, dout_tile, v_tile, y, x, p, ds);
    put_tile<R>(s_tile, ds, y, x);
    __syncthreads();
    add_products<R, K, false>(sums, s_tile, k_tile, s.size, y, x);
  }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const Index query = first + y + kSide * i;
    if (query >= s.queries) continue;
    T* const to = g.dq.at<T>(b, query, h);
#pragma unroll
    for (int c = 0; c < K; ++c)
      if (x + kSide * c < s.size) to[x + kSide * c] = from_float<T>(sums[i][c] * s.scale);
  }
}

// A block owns a tile of keys of one key head and adds the heads that share it, and their queries, in order.
template <class T, int R, int K>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(AttentionArgs s, AttentionGradient g) {
  constexpr int Tile = R * kSide;
  extern __shared__ float memory[];
  float* const q_tile = memory;
  float* const k_tile = q_tile + Tile * (s.size + 1);
  float* const dout_tile = k_tile + Tile * (s.size + 1);
  float* const v_tile = dout_tile + Tile * (s.value_size + 1);
  float* const s_tile = v_tile + Tile * (s.value_size + 1);
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const Index tiles = div_up(s.keys, Tile), group = s.heads / s.key_heads;
  const Index tile = blockIdx.x % tiles, kh = blockIdx.x / tiles % s.key_heads, b = blockIdx.x / tiles / s.key_heads;
  const Index first = tile * Tile;
  load_tile<T, Tile>(k_tile, g.k, b, kh, first, s.keys, s.size);
  load_tile<T, Tile>(v_tile, g.v, b, kh, first, s.keys, s.value_size);
  float key_sums[R][K] = {}, value_sums[R][K] = {};
  // Queries before this one see none of these keys.
  const Index start = s.causal ? max(Index{0}, first - s.query_offset) / Tile * Tile : 0;
  for (Index h = kh * group; h < (kh + 1) * group; ++h)
    for (Index begin = start; begin < s.queries; begin += Tile) {
      if (first_key(s, b, begin) >= first + Tile) break;  // neither this tile of queries nor a later one sees a key
      __syncthreads();
      load_tile<T, Tile>(q_tile, g.q, b, h, begin, s.queries, s.size);
      load_tile<T, Tile>(dout_tile, g.dout, b, h, begin, s.queries, s.value_size);
      __syncthreads();
      float p[R][R], ds[R][R];
      score_gradients<R>(s, g, b, h, begin, first, q_tile, k_tile, dout_tile, v_tile, y, x, p, ds);
      put_tile<R>(s_tile, p, y, x);
      __syncthreads();
      add_products<R, K, true>(value_sums, s_tile, dout_tile, s.value_size, y, x);
      __syncthreads();
      put_tile<R>(s_tile, ds, y, x);
      __syncthreads();
      add_products<R, K, true>(key_sums, s_tile, q_tile, s.size, y, x);
    }
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const Index key = first + y + kSide * i;
    if (key >= s.keys) continue;
    T* const dk = g.dk.at<T>(b, key, kh);
    T* const dv = g.dv.at<T>(b, key, kh);
#pragma unroll
    for (int c = 0; c < K; ++c) {
      if (x + kSide * c < s.size) dk[x + kSide * c] = from_float<T>(key_sums[i][c] * s.scale);
      if (x + kSide * c < s.value_size) dv[x + kSide * c] = from_float<T>(value_sums[i][c]);
    }
  }
}

// Bytes of `wide` tiles of keys or queries, `values` of values, one of scores.
std::size_t tile_bytes(const AttentionArgs& s, int tile, int wide, int values) {
  return static_cast<std::size_t>(tile * (wide * (s.size + 1) + values * (s.value_size + 1) + tile + 1)) *
         sizeof(float);
}

std::size_t most_shared_memory() {
  int device = 0, bytes = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes);
}

// Calls f(R, K) constants: tiles of 64 with heads up to 128, of 32 up to 256; smaller ones where a block's shared
// memory is too small for that (compute capability 8.6 and 8.9 with wide heads). `values`: tiles of values beside two
// of keys.
template <class F>
void dispatch_size(const AttentionArgs& s, int values, F&& f) {
  using std::integral_constant;
  const Index most = std::max(s.size, s.value_size);
  const std::size_t memory = most_shared_memory();
  const bool whole = most <= 128 && tile_bytes(s, 4 * kSide, 2, values) <= memory;
  if (whole && most <= 64) return f(integral_constant<int, 4>{}, integral_constant<int, 4>{});
  if (whole) return f(integral_constant<int, 4>{}, integral_constant<int, 8>{});
  if (tile_bytes(s, 2 * kSide, 2, values) <= memory)
    return f(integral_constant<int, 2>{}, integral_constant<int, 16>{});
  f(integral_constant<int, 1>{}, integral_constant<int, 16>{});
}

}  // namespace

void attention_forward_tiled(Stream& stream, const AttentionForward& op) {
  if (attention_on_tensor_cores(op.q, op.v)) return attention_forward_tensor_cores(stream, op);
  const AttentionArgs s = attention_args(op);
  dispatch_float(op.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_size(s, 1, [&](auto r, auto k) {
      constexpr int Tile = r * kSide;
      start(stream, forward_kernel<T, r, k>, div_up(s.queries, Tile) * s.heads * op.q.dim(0), kThreads,
            tile_bytes(s, Tile, 2, 1), "attention", s, heads(op.o), op.lse.as<float>(), heads(op.q), heads(op.k),
            heads(op.v));
    });
  });
}

void attention_backward_tiled(Stream& stream, const AttentionBackward& op) {
  const ArenaScope scope(stream.workspace());
  const AttentionArgs s = attention_args(op);
  const AttentionGradient g =
      attention_gradient(stream, op, s, stream.workspace().allocate({op.q.dim(0) * s.heads * s.queries}).as<float>());
  if (attention_on_tensor_cores(op.q, op.v)) return attention_backward_tensor_cores(stream, op, s, g);
  dispatch_float(op.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_size(s, 2, [&](auto r, auto k) {
      constexpr int Tile = r * kSide;
      const std::size_t memory = tile_bytes(s, Tile, 2, 2);
      start(stream, query_gradient_kernel<T, r, k>, div_up(s.queries, Tile) * s.heads * op.q.dim(0), kThreads, memory,
            "attention_backward", s, g);
      start(stream, key_gradient_kernel<T, r, k>, div_up(s.keys, Tile) * s.key_heads * op.q.dim(0), kThreads, memory,
            "attention_backward", s, g);
    });
  });
}

}  // namespace dstrain::cuda
