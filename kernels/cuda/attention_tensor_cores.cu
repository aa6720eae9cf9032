#include "kernels/cuda/attention_tensor_cores.cuh"

#include "kernels/cuda/device/mma.cuh"

namespace dstrain::cuda {

namespace {

using bf16 = __nv_bfloat16;

// A block's four warps own 16 rows each of a tile of 64. Rows of tiles are padded by 16 bytes, so that eight of them
// lie in different banks.
constexpr int kWarps = 4, kThreads = kWarps * 32, kTile = kWarps * 16, kPad = 8;
constexpr int kQueries = 32;  // of a step of the keys' gradient: its sums take most registers
constexpr float kLog2E = 1.44269504088896340736f;

// Rows [begin, begin + Rows) of one head, `width` a multiple of 16, into shared memory; rows past `end` are zeros.
// `wide`: they are aligned to 16 bytes.
template <int Rows>
__device__ inline void load_rows(bf16* to, int stride, const Heads& from, Index b, Index h, Index begin, Index end,
                                 int width, bool wide) {
  if (wide) {
    const int vectors = width / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Rows * vectors; i += kThreads) {
      const int r = i / vectors, c = i % vectors * 8;
      uint4 v = {0, 0, 0, 0};
      if (begin + r < end) v = *reinterpret_cast<const uint4*>(from.at<const bf16>(b, begin + r, h) + c);
      *reinterpret_cast<uint4*>(to + r * stride + c) = v;
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < Rows * width; i += kThreads) {
      const int r = i / width, c = i % width;
      to[r * stride + c] = begin + r < end ? from.at<const bf16>(b, begin + r, h)[c] : __float2bfloat16_rn(0.0f);
    }
  }
}

// Whether each of the `queries` from i on sees each of the `keys` from j on.
__device__ inline bool all_seen(const AttentionArgs& s, Index b, Index i, int queries, Index j, int keys) {
  return i + queries <= s.queries && j + keys <= s.keys && (!s.causal || j + keys - 1 <= i + s.query_offset) &&
         j >= first_key(s, b, i + queries - 1);
}

// The four lanes that share rows of sums.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Row of a lane's sums 2 r and 2 r + 1 in its warp's tile, and the column of the first one.
__device__ inline int sum_row(int r) { return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r; }
__device__ inline int sum_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

// One row of sums, times `factor`, to memory.
template <int N>
__device__ inline void store_row(bf16* to, const float (&sums)[N][4], int r, int width, float factor) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n * 8 >= width) break;
    to[n * 8 + sum_column()] = __float2bfloat16_rn(sums[n][2 * r] * factor);
    to[n * 8 + sum_column() + 1] = __float2bfloat16_rn(sums[n][2 * r + 1] * factor);
  }
}

extern __shared__ uint4 shared_tiles[];

template <int W>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(AttentionArgs s, Heads o, float* lse, Heads q, Heads k, Heads v, bool wide) {
  constexpr int kStride = W + kPad;
  bf16* const q_tile = reinterpret_cast<bf16*>(shared_tiles);
  bf16* const k_tile = q_tile + kTile * kStride;
  bf16* const v_tile = k_tile + kTile * kStride;
  const Index tiles = div_up(s.queries, kTile);
  const Index tile = tiles - 1 - blockIdx.x % tiles;  // with a causal mask the last ones take longest
  const Index h = blockIdx.x / tiles % s.heads, b = blockIdx.x / tiles / s.heads, kh = h / (s.heads / s.key_heads);
  const Index first = tile * kTile, end = key_end(s, first, kTile);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int size = static_cast<int>(s.size), value_size = static_cast<int>(s.value_size);
  const float scale = s.scale * kLog2E;
  load_rows<kTile>(q_tile, kStride, q, b, h, first, s.queries, size, wide);
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // of scores in powers of two; a lane's part of the sum
  float sums[W / 8][4] = {};
  for (Index begin = key_begin(s, b, first, kTile); begin < end; begin += kTile) {
    __syncthreads();
    load_rows<kTile>(k_tile, kStride, k, b, kh, begin, s.keys, size, wide);
    load_rows<kTile>(v_tile, kStride, v, b, kh, begin, s.keys, value_size, wide);
    __syncthreads();
    float p[kTile / 8][4] = {};
    multiply_rows<kTile / 8, W>(p, q_tile + warp_row * kStride, k_tile, size, kStride);
    const bool whole = all_seen(s, b, first, kTile, begin, kTile);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Index query = first + warp_row + sum_row(r);
      float best = most[r];
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = p[n][2 * r + e];
          x = whole || seen(s, b, query, begin + n * 8 + sum_column() + e) ? x * scale : -INFINITY;
          best = fmaxf(best, x);
        }
      best = quad_max(best);
      const float shift = best == -INFINITY ? 0.0f : best;
      const float rescale = exp2f(most[r] - shift);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = p[n][2 * r + e];
          x = exp2f(x - shift);
          sum += x;
          if (s.p > 0 && x > 0) x *= kept(s, b, h, query, begin + n * 8 + sum_column() + e);
        }
      total[r] = total[r] * rescale + sum;
      most[r] = best;
#pragma unroll
      for (int n = 0; n < W / 8; ++n) sums[n][2 * r] *= rescale, sums[n][2 * r + 1] *= rescale;
    }
    multiply_sums<kTile / 8>(sums, p, v_tile, value_size, kStride);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = quad_sum(total[r]);
    const Index query = first + warp_row + sum_row(r);
    if (query >= s.queries) continue;
    store_row(o.at<bf16>(b, query, h), sums, r, value_size, sum > 0 ? 1.0f / sum : 0.0f);
    if (sum_column() == 0)
      lse[(b * s.heads + h) * s.queries + query] = sum > 0 ? (most[r] + log2f(sum)) / kLog2E : -INFINITY;
  }
}

// Of two score products: p becomes what dropout kept of the probability, dp the gradient of the score. `log_sum` in
// powers of two.
__device__ inline void score_gradient(const AttentionArgs& s, Index b, Index h, Index query, Index key, bool whole,
                                      float log_sum, float delta, float& p, float& dp) {
  const float probability = whole || seen(s, b, query, key) ? exp2f(fmaf(p, s.scale * kLog2E, -log_sum)) : 0.0f;
  const float keep = s.p > 0 && probability > 0 ? kept(s, b, h, query, key) : 1.0f;
  dp = probability * (keep * dp - delta);
  p = probability * keep;
}

template <int W>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(AttentionArgs s, AttentionGradient g, bool wide) {
  constexpr int kStride = W + kPad;
  bf16* const q_tile = reinterpret_cast<bf16*>(shared_tiles);
  bf16* const dout_tile = q_tile + kTile * kStride;
  bf16* const k_tile = dout_tile + kTile * kStride;
  bf16* const v_tile = k_tile + kTile * kStride;
  const Index tiles = div_up(s.queries, kTile);
  const Index tile = tiles - 1 - blockIdx.x % tiles;
  const Index h = blockIdx.x / tiles % s.heads, b = blockIdx.x / tiles / s.heads, kh = h / (s.heads / s.key_heads);
  const Index first = tile * kTile, end = key_end(s, first, kTile);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int size = static_cast<int>(s.size), value_size = static_cast<int>(s.value_size);
  load_rows<kTile>(q_tile, kStride, g.q, b, h, first, s.queries, size, wide);
  load_rows<kTile>(dout_tile, kStride, g.dout, b, h, first, s.queries, value_size, wide);
  float log_sum[2] = {}, delta[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (const Index query = first + warp_row + sum_row(r); query < s.queries) {
      log_sum[r] = g.lse[(b * s.heads + h) * s.queries + query] * kLog2E;
      delta[r] = g.delta[(b * s.heads + h) * s.queries + query];
    }
  float sums[W / 8][4] = {};
  for (Index begin = key_begin(s, b, first, kTile); begin < end; begin += kTile) {
    __syncthreads();
    load_rows<kTile>(k_tile, kStride, g.k, b, kh, begin, s.keys, size, wide);
    load_rows<kTile>(v_tile, kStride, g.v, b, kh, begin, s.keys, value_size, wide);
    __syncthreads();
    float p[kTile / 8][4] = {}, ds[kTile / 8][4] = {};
    multiply_rows<kTile / 8, W>(p, q_tile + warp_row * kStride, k_tile, size, kStride);
    multiply_rows<kTile / 8, W>(ds, dout_tile + warp_row * kStride, v_tile, value_size, kStride);
    const bool whole = all_seen(s, b, first, kTile, begin, kTile);
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        score_gradient(s, b, h, first + warp_row + sum_row(i / 2), begin + n * 8 + sum_column() + i % 2, whole,
                       log_sum[i / 2], delta[i / 2], p[n][i], ds[n][i]);
    multiply_sums<kTile / 8>(sums, ds, k_tile, size, kStride);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (const Index query = first + warp_row + sum_row(r); query < s.queries)
      store_row(g.dq.at<bf16>(b, query, h), sums, r, size, s.scale);
}

// A block owns a tile of keys of one key head and adds the heads that share it, and their queries, in order. Scores are
// made transposed, keys as rows: so they are the left operand of both products with queries.
template <int W>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(AttentionArgs s, AttentionGradient g, bool wide) {
  constexpr int kStride = W + kPad;
  __shared__ float log_sums[kQueries], deltas[kQueries];
  bf16* const k_tile = reinterpret_cast<bf16*>(shared_tiles);
  bf16* const v_tile = k_tile + kTile * kStride;
  bf16* const q_tile = v_tile + kTile * kStride;
  bf16* const dout_tile = q_tile + kQueries * kStride;
  const Index tiles = div_up(s.keys, kTile), group = s.heads / s.key_heads;
  const Index tile = blockIdx.x % tiles, kh = blockIdx.x / tiles % s.key_heads, b = blockIdx.x / tiles / s.key_heads;
  const Index first = tile * kTile;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int size = static_cast<int>(s.size), value_size = static_cast<int>(s.value_size);
  load_rows<kTile>(k_tile, kStride, g.k, b, kh, first, s.keys, size, wide);
  load_rows<kTile>(v_tile, kStride, g.v, b, kh, first, s.keys, value_size, wide);
  float key_sums[W / 8][4] = {}, value_sums[W / 8][4] = {};
  // Queries before this one see none of these keys.
  const Index start = s.causal ? max(Index{0}, first - s.query_offset) / kQueries * kQueries : 0;
  for (Index h = kh * group; h < (kh + 1) * group; ++h)
    for (Index begin = start; begin < s.queries; begin += kQueries) {
      if (first_key(s, b, begin) >= first + kTile) break;  // neither these queries nor later ones see a key
      __syncthreads();
      load_rows<kQueries>(q_tile, kStride, g.q, b, h, begin, s.queries, size, wide);
      load_rows<kQueries>(dout_tile, kStride, g.dout, b, h, begin, s.queries, value_size, wide);
      if (const Index query = begin + threadIdx.x; threadIdx.x < kQueries) {
        const Index at = (b * s.heads + h) * s.queries + query;
        log_sums[threadIdx.x] = query < s.queries ? g.lse[at] * kLog2E : 0.0f;
        deltas[threadIdx.x] = query < s.queries ? g.delta[at] : 0.0f;
      }
      __syncthreads();
      float p[kQueries / 8][4] = {}, ds[kQueries / 8][4] = {};
      multiply_rows<kQueries / 8, W>(p, k_tile + warp_row * kStride, q_tile, size, kStride);
      multiply_rows<kQueries / 8, W>(ds, v_tile + warp_row * kStride, dout_tile, value_size, kStride);
      const bool whole = all_seen(s, b, begin, kQueries, first, kTile);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int query = n * 8 + sum_column() + i % 2;
          score_gradient(s, b, h, begin + query, first + warp_row + sum_row(i / 2), whole, log_sums[query],
                         deltas[query], p[n][i], ds[n][i]);
        }
      multiply_sums<kQueries / 8>(value_sums, p, dout_tile, value_size, kStride);
      multiply_sums<kQueries / 8>(key_sums, ds, q_tile, size, kStride);
    }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (const Index key = first + warp_row + sum_row(r); key < s.keys) {
      store_row(g.dk.at<bf16>(b, key, kh), key_sums, r, size, s.scale);
      store_row(g.dv.at<bf16>(b, key, kh), value_sums, r, value_size, 1.0f);
    }
}

// Calls f with the width of tiles.
template <class F>
void dispatch_width(const AttentionArgs& s, F&& f) {
  if (std::max(s.size, s.value_size) <= 64)
    f(std::integral_constant<int, 64>{});
  else
    f(std::integral_constant<int, 128>{});
}

constexpr std::size_t tile_bytes(int rows, int width) {
  return static_cast<std::size_t>(rows * (width + kPad)) * sizeof(bf16);
}

// Whether every row of every head starts at a multiple of 16 bytes.
bool aligned_heads(const Heads& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.batch % 8 == 0 && t.time % 8 == 0 && t.head % 8 == 0;
}

}  // namespace

void attention_forward_tensor_cores(Stream& stream, const AttentionForward& op) {
  const AttentionArgs s = attention_args(op);
  const Heads q = heads(op.q), k = heads(op.k), v = heads(op.v);
  const bool wide = aligned_heads(q) && aligned_heads(k) && aligned_heads(v);
  dispatch_width(s, [&](auto w) {
    start(stream, forward_kernel<w>, div_up(s.queries, kTile) * s.heads * op.q.dim(0), kThreads,
          tile_bytes(3 * kTile, w), "attention", s, heads(op.o), op.lse.as<float>(), q, k, v, wide);
  });
}

void attention_backward_tensor_cores(Stream& stream, const AttentionBackward& op, const AttentionArgs& s,
                                     const AttentionGradient& g) {
  const bool wide = aligned_heads(g.q) && aligned_heads(g.k) && aligned_heads(g.v) && aligned_heads(g.dout);
  dispatch_width(s, [&](auto w) {
    start(stream, query_gradient_kernel<w>, div_up(s.queries, kTile) * s.heads * op.q.dim(0), kThreads,
          tile_bytes(4 * kTile, w), "attention_backward", s, g, wide);
    start(stream, key_gradient_kernel<w>, div_up(s.keys, kTile) * s.key_heads * op.q.dim(0), kThreads,
          tile_bytes(2 * kTile + 2 * kQueries, w), "attention_backward", s, g, wide);
  });
}

}  // namespace dstrain::cuda
