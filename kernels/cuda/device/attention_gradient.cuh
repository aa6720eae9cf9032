#pragma once
// The gradient of attention as FlashAttention-3 cuts it (Shah et al. 2024, arXiv 2407.08608, appendix B): a tile is 128
// keys of a key head, 64 for each of two warpgroups, which keep its dk and dv in registers while the queries that see
// it pass by, kQueries at a time. A third warpgroup loads. Of a step
//   s^T = k q^T; p = exp(s - lse); dp^T = v dout^T; ds = p (dp - delta); dv += p^T dout; dk += ds^T q; dq += ds k
// the product with k needs the ds of both warpgroups. It is made one step late, when ds has long been there, so that
// neither waits for the other; the last one of a tile in the first step of the next. Blocks stay and take tiles from a
// counter, in order of head and sample, those that are seen by most queries first; keys and values of the next tile
// are loaded meanwhile.

#include "kernels/cuda/attention_rule.h"
#include "kernels/cuda/device/warpgroup_products.cuh"

namespace dstrain::cuda::attention_wgmma {

using Half = __nv_bfloat16;

inline constexpr int kKeys = static_cast<int>(kWgmmaKeys), kThreads = 384, kStages = 2;
inline constexpr float kLog2e = 1.4426950408889634f;

// Head sizes: 64 with 128 queries a step, 128 with 64.
template <int D>
struct Layout {
  static constexpr int kQueries = 8192 / D;
  // Panels of 64 columns, 128 bytes a row.
  static constexpr int kKeyPanel = kKeys * 128, kQueryPanel = kQueries * 128;
  static constexpr int kKeyBytes = D / 64 * kKeyPanel, kQueryBytes = D / 64 * kQueryPanel;
  static constexpr int kScoreBytes = kQueries / 64 * kKeyPanel;
  static constexpr int kK = 0, kV = kK + kStages * kKeyBytes, kQ = kV + kStages * kKeyBytes,
                       kDout = kQ + kStages * kQueryBytes, kScores = kDout + kStages * kQueryBytes,
                       kLse = kScores + 2 * kScoreBytes, kDelta = kLse + kStages * kQueries * 4,
                       kEnd = kDelta + kStages * kQueries * 4;
  // Of a thread; together no more than a block begins with, 168 a thread.
  static constexpr int kRegisters = D == 64 ? 232 : 240, kLoaderRegisters = D == 64 ? 40 : 24;
  static_assert(2 * kRegisters + kLoaderRegisters <= 3 * 168);
  static constexpr std::size_t kShared = 1024 + static_cast<std::size_t>(kEnd);
};

struct GradientArgs {
  CUtensorMap q, dout, k, v;  // (D, B T, heads)
  Half *dk, *dv;
  Index dk_row, dk_head, dv_row, dv_head;
  float* dq;                 // (B, H, T / kQueries) parts in the order of registers
  const float *lse, *delta;  // (B, H, T): -lse log2(e), dout . o
  int* next;
  int tiles, key_tiles, steps, length, heads, key_heads;
  float scale;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Barriers {
  std::uint64_t keys_full[kStages], keys_empty[kStages], q_full[kStages], q_empty[kStages], dout_full[kStages],
      dout_empty[kStages], scores_full[2], scores_empty[2];
  int tile[kStages];  // that is loaded; -1: no more
};

// A ring of stages and how often it went round.
struct Turn {
  int at = 0;
  unsigned parity = 0;
  __device__ void advance() {
    if (++at == kStages) {
      at = 0;
      parity ^= 1;
    }
  }
};

struct Tile {
  int keys, head, sample;  // the first key; key head
  __device__ Tile(const GradientArgs& a, int t)
      : keys(t % a.key_tiles * kKeys), head(t / a.key_tiles % a.key_heads), sample(t / a.key_tiles / a.key_heads) {}
};

template <int D, bool kCausal>
__device__ inline void load_tiles(const GradientArgs& a, unsigned memory, Barriers& bars) {
  using L = Layout<D>;
  Turn tile_turn, turn;
  const int group = a.heads / a.key_heads;
  int t = static_cast<int>(blockIdx.x);
  while (true) {
    barrier_wait(bars.keys_empty + tile_turn.at, tile_turn.parity ^ 1);
    bars.tile[tile_turn.at] = t < a.tiles ? t : -1;
    if (t >= a.tiles) {
      barrier_arrive(bars.keys_full + tile_turn.at);
      return;
    }
    const int after = static_cast<int>(gridDim.x) + atomicAdd(a.next, 1);
    const Tile tile(a, t);
    const int row = tile.sample * a.length;
    barrier_expect(bars.keys_full + tile_turn.at, 2 * L::kKeyBytes);
#pragma unroll
    for (int p = 0; p < D / 64; ++p) {
      const unsigned at = memory + tile_turn.at * L::kKeyBytes + p * L::kKeyPanel;
      load_box(at + L::kK, &a.k, bars.keys_full + tile_turn.at, p * 64, row + tile.keys, tile.head);
      load_box(at + L::kV, &a.v, bars.keys_full + tile_turn.at, p * 64, row + tile.keys, tile.head);
    }
    tile_turn.advance();
    for (int h = tile.head * group; h < (tile.head + 1) * group; ++h) {
      for (int m = kCausal ? tile.keys / L::kQueries : 0; m < a.steps; ++m) {
        const Index first = (static_cast<Index>(tile.sample) * a.heads + h) * a.length + m * L::kQueries;
        const auto load = [&](std::uint64_t* full, std::uint64_t* empty, const CUtensorMap* map, int at,
                              const float* numbers, int numbers_at) {
          barrier_wait(empty + turn.at, turn.parity ^ 1);
          barrier_expect(full + turn.at, L::kQueryBytes + L::kQueries * 4);
#pragma unroll
          for (int p = 0; p < D / 64; ++p)
            load_box(memory + at + turn.at * L::kQueryBytes + p * L::kQueryPanel, map, full + turn.at, p * 64,
                     row + m * L::kQueries, h);
          load_row(memory + numbers_at + turn.at * L::kQueries * 4, numbers + first, L::kQueries * 4, full + turn.at);
        };
        load(bars.q_full, bars.q_empty, &a.q, L::kQ, a.lse, L::kLse);
        load(bars.dout_full, bars.dout_empty, &a.dout, L::kDout, a.delta, L::kDelta);
        turn.advance();
      }
    }
    t = after;
  }
}

__device__ inline float2 shared_pair(unsigned from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from));
  return x;
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// One of two bf16.
__device__ inline float half_of(std::uint32_t pair, int which) {
  return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}
__device__ inline void put_matrices(unsigned to, const std::uint32_t (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}
__device__ inline void add_four(float* to, float a, float b, float c, float d) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(a), "f"(b),
               "f"(c), "f"(d)
               : "memory");
}

// A sum's registers as the first operand of another product, 16 of its columns each.
template <int kCount>
__device__ inline void round_sum(const float (&d)[kCount * 8], std::uint32_t (&out)[kCount][4]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[k][i] = rounded_pair(d[8 * k + 2 * i], d[8 * k + 2 * i + 1]);
  }
}

// 64 rows of dk or dv.
template <int D>
__device__ inline void store_gradient(Half* to, Index row, const float (&d)[D / 2], float scale) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Half* const line = to + (warp * 16 + lane / 4 + 8 * half) * row;
#pragma unroll
    for (int j = 0; j < D / 8; j += 4) {
      std::uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = rounded_pair(d[4 * (j + i) + 2 * half] * scale, d[4 * (j + i) + 2 * half + 1] * scale);
      transpose_quad(x);
      *reinterpret_cast<uint4*>(line + (j + lane % 4) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

template <int D, bool kCausal>
__device__ inline void make_gradients(const GradientArgs& a, unsigned memory, Barriers& bars) {
  using L = Layout<D>;
  constexpr int kQueries = L::kQueries, kSums = kQueries / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4,
            mine = static_cast<int>(threadIdx.x) / 128 - 1;  // warpgroup
  const int group = a.heads / a.key_heads;
  const float scale_log2 = a.scale * kLog2e;
  Turn tile_turn, turn;
  int buffer = 0;              // of scores
  unsigned buffer_parity = 0;  // of this step's
  // The product with keys that is still to be made.
  unsigned late_keys = memory;  // where they are
  float* late_dq = nullptr;
  int late_tile = -1;  // stage of keys that it is the last to read, or none
  int held = -1;       // stage of q that the product of dk still reads
  float dk[D / 2], dv[D / 2];

  // 64 rows of keys or values by the transpose of what queries there are.
  const auto multiply = [&](float(&d)[kQueries / 2], unsigned rows, unsigned queries) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const std::uint64_t x = descriptor(rows + k / 4 * L::kKeyPanel + k % 4 * 32, L::kKeyPanel),
                          y = descriptor(queries + k / 4 * L::kQueryPanel + k % 4 * 32, L::kQueryPanel);
      if (k == 0)
        product<true, 0, 0>(d, x, y);
      else
        product<false, 0, 0>(d, x, y);
    }
    commit_products();
  };
  const auto make_dq = [&](float(&dq)[32], int from) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const unsigned scores = memory + L::kScores + from * L::kScoreBytes + (D == 64 ? mine * L::kKeyPanel : 0);
      const unsigned keys = late_keys + (D == 64 ? 0 : mine * L::kKeyPanel);
      const std::uint64_t x = descriptor(scores + k * 2048, L::kKeyPanel),
                          y = descriptor(keys + k * 2048, L::kKeyPanel);
      if (k == 0)
        product<true, 1, 1>(dq, x, y);
      else
        product<false, 1, 1>(dq, x, y);
    }
    commit_products();
  };
  const auto add_dq = [&](const float(&dq)[32]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) add_four(late_dq + j * 512, dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
  };

  while (true) {
    barrier_wait(bars.keys_full + tile_turn.at, tile_turn.parity);
    const int t = bars.tile[tile_turn.at];
    if (t < 0) break;
    const Tile tile(a, t);
    const unsigned keys = memory + L::kK + tile_turn.at * L::kKeyBytes, values = keys + L::kV;
    const unsigned my_rows = mine * 8192;
#pragma unroll
    for (int i = 0; i < D / 2; ++i) dk[i] = dv[i] = 0;
    for (int h = tile.head * group; h < (tile.head + 1) * group; ++h) {
      for (int m = kCausal ? tile.keys / kQueries : 0; m < a.steps; ++m) {
        const unsigned q = memory + L::kQ + turn.at * L::kQueryBytes, dout = q + L::kDout - L::kQ;
        float s[kQueries / 2], dp[kQueries / 2];
        barrier_wait(bars.q_full + turn.at, turn.parity);
        pin(dk);
        pin(dv);
        begin_products();
        multiply(s, keys + my_rows, q);
        wait_products<1>();  // dk's, and with it the registers that it reads
        if (held >= 0 && lane == 0) barrier_arrive(bars.q_empty + held);
        held = turn.at;
        barrier_wait(bars.dout_full + turn.at, turn.parity);
        begin_products();
        multiply(dp, values + my_rows, dout);
        wait_products<1>();
        pin(s);

        // Probabilities; columns of the sums are queries.
        const unsigned numbers = turn.at * kQueries * 4 + lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
          const float2 lse = shared_pair(memory + L::kLse + numbers + j * 32);
          s[4 * j] = exp2_fast(s[4 * j] * scale_log2 + lse.x);
          s[4 * j + 1] = exp2_fast(s[4 * j + 1] * scale_log2 + lse.y);
          s[4 * j + 2] = exp2_fast(s[4 * j + 2] * scale_log2 + lse.x);
          s[4 * j + 3] = exp2_fast(s[4 * j + 3] * scale_log2 + lse.y);
        }
        if (kCausal && m * kQueries < tile.keys + kKeys) {
          const int below = m * kQueries + lane % 4 * 2 - (tile.keys + mine * 64 + warp * 16 + lane / 4);
#pragma unroll
          for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (below + 8 * j + i % 2 < 8 * (i / 2)) s[4 * j + i] = 0;
          }
        }
        std::uint32_t p[kSums][4], ds[kSums][4];
        round_sum<kSums>(s, p);
        pin(p);
        pin(dv);
        begin_products();
#pragma unroll
        for (int k = 0; k < kSums; ++k) product<1>(dv, p[k], descriptor(dout + k * 2048, L::kQueryPanel));
        commit_products();
        wait_products<1>();
        pin(dp);
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
          const float2 delta = shared_pair(memory + L::kDelta + numbers + j * 32);
          const auto probability = [&](int i) {
            return D == 64 ? half_of(p[j / 2][j % 2 * 2 + i / 2], i % 2) : s[4 * j + i];
          };
#pragma unroll
          for (int i = 0; i < 4; ++i) dp[4 * j + i] = probability(i) * (dp[4 * j + i] - (i % 2 ? delta.y : delta.x));
        }
        round_sum<kSums>(dp, ds);
        barrier_wait(bars.scores_empty + buffer, buffer_parity ^ 1);
        {
          const int key = mine * 64 + warp * 16 + lane / 8 % 2 * 8 + lane % 8;
          const unsigned to = memory + L::kScores + buffer * L::kScoreBytes + key * 128;
#pragma unroll
          for (int k = 0; k < kSums; ++k)
            put_matrices(to + k / 4 * L::kKeyPanel + (((k % 4 * 2 + lane / 16) ^ lane % 8) << 4), ds[k]);
        }
        fence_async();
        __syncwarp();
        if (lane == 0) barrier_arrive(bars.scores_full + buffer);

        float dq[32];
        const int before = buffer ^ 1;
        const bool late = late_dq != nullptr;
        pin(ds);
        pin(dk);
        // Of the step before: its parity is the other one where this buffer is the first of its round. In a block's
        // first step the product is of nothing, and nothing comes of it.
        barrier_wait(bars.scores_full + before, buffer == 0 ? buffer_parity ^ 1 : buffer_parity);
        begin_products();
        make_dq(dq, before);
#pragma unroll
        for (int k = 0; k < kSums; ++k) product<1>(dk, ds[k], descriptor(q + k * 2048, L::kQueryPanel));
        commit_products();
        wait_products<1>();
        pin(dv);
        pin(p);
        pin(dq);
        if (lane == 0) {
          barrier_arrive(bars.dout_empty + turn.at);
          if (late) barrier_arrive(bars.scores_empty + before);
          if (late_tile >= 0) barrier_arrive(bars.keys_empty + late_tile);
        }
        late_tile = -1;
        if (late) add_dq(dq);
        late_keys = keys;
        late_dq = a.dq + ((static_cast<Index>(tile.sample) * a.heads + h) * a.steps + m) * 8192 + mine * 4096 +
                  static_cast<int>(threadIdx.x) % 128 * 4;
        turn.advance();
        buffer ^= 1;
        if (buffer == 0) buffer_parity ^= 1;
      }
    }
    late_tile = tile_turn.at;
    tile_turn.advance();
    wait_products<0>();
    pin(dk);
    if (lane == 0) barrier_arrive(bars.q_empty + held);
    held = -1;
    const Index row = static_cast<Index>(tile.sample) * a.length + tile.keys + mine * 64;
    store_gradient<D>(a.dk + row * a.dk_row + tile.head * a.dk_head, a.dk_row, dk, a.scale);
    store_gradient<D>(a.dv + row * a.dv_row + tile.head * a.dv_head, a.dv_row, dv, 1);
  }
  if (late_dq != nullptr) {
    float dq[32];
    const int before = buffer ^ 1;
    barrier_wait(bars.scores_full + before, buffer == 0 ? buffer_parity ^ 1 : buffer_parity);
    begin_products();
    make_dq(dq, before);
    wait_products<0>();
    pin(dq);
    add_dq(dq);
  }
}

#endif

template <int D, bool kCausal>
__global__ void __launch_bounds__(kThreads, 1) attention_gradient_kernel(const __grid_constant__ GradientArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char dynamic[];
  __shared__ Barriers bars;
  const unsigned memory = (shared_address(dynamic) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      for (std::uint64_t* full : {bars.keys_full, bars.q_full, bars.dout_full}) barrier_init(full + i, 1);
      for (std::uint64_t* empty : {bars.keys_empty, bars.q_empty, bars.dout_empty}) barrier_init(empty + i, 8);
      barrier_init(bars.scores_full + i, 8);
      barrier_init(bars.scores_empty + i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Layout<D>::kLoaderRegisters));
    if (threadIdx.x == 0) load_tiles<D, kCausal>(a, memory, bars);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Layout<D>::kRegisters));
    make_gradients<D, kCausal>(a, memory, bars);
  }
#else
  asm volatile("trap;");  // built for sm_90 without its own features
#endif
}

}  // namespace dstrain::cuda::attention_wgmma
