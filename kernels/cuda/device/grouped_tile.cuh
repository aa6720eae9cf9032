#pragma once
// How tiles of grouped_wgmma.cu leave: through two buffers of shared memory a warpgroup to bulk copies, or, where a
// group ends in a tile, row by row.

#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/sigmoid.cuh"

namespace dstrain::cuda::grouped {

// A tile, what is loaded of the sum at a time, and for how many of those there is room.
inline constexpr int kM = 128, kN = 256, kK = 64, kStages = 4, kThreads = 384, kMostGroups = 448;
inline constexpr int kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStageBytes = kABytes + kBBytes;
inline constexpr int kBufferBytes = 8192;  // 64 rows of 128 bytes
inline constexpr int kBuffersAt = kStages * kStageBytes;
inline constexpr std::size_t kShared = 1024 + static_cast<std::size_t>(kBuffersAt) + 4 * kBufferBytes;
using Half = __nv_bfloat16;

// gradient_swapped: c^T = b^T a, for a b that is gathered.
// product_activated: of a transposed b = [gate; up], a tile has 128 columns of each.
enum class Kind { product, product_transposed, product_activated, gradient, gradient_swapped };
template <Kind kKind>
inline constexpr bool kIsGradient = kKind == Kind::gradient || kKind == Kind::gradient_swapped;
template <Kind kKind>
inline constexpr bool kTransposedB = kKind == Kind::product_transposed || kKind == Kind::product_activated;
template <Kind kKind>
inline constexpr int kColumns = kKind == Kind::product_activated ? kN / 2 : kN;

struct Problem {
  CUtensorMap b_map, c_map, activated_map;
  Half *c, *activated;  // of a product
  const Half* a;
  const std::int32_t *offsets, *a_rows;
  Index c_row, activated_row, a_row;
  int groups, m, n, k;  // m: columns of a gradient's a; n: of gate where there is one; k: of a product
  bool accumulate;
  bool narrow;  // a gradient is stored as bf16
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A warpgroup's two buffers.
struct Staging {
  unsigned memory;
  int barrier;  // its own
  unsigned next = 0;

  __device__ unsigned buffer() const { return memory + next * kBufferBytes; }
  // The next buffer may be written.
  __device__ void begin() const {
    if (threadIdx.x % 128 == 0) wait_stores_read<1>();
    sync_warpgroup(barrier);
  }
  // It was written by all threads; store() starts its copies.
  template <class F>
  __device__ void end(F&& store) {
    fence_async();
    sync_warpgroup(barrier);
    if (threadIdx.x % 128 == 0) {
      store();
      commit_stores();
    }
    next ^= 1;
  }
};

__device__ inline void put_shared(unsigned to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
__device__ inline void put_shared(unsigned to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}
__device__ inline void put_shared(unsigned to, std::uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}

// Four matrices of 8 x 8, turned: lane l gives where line l % 8 of matrix l / 8 begins.
__device__ inline void put_turned(unsigned to, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
__device__ inline void put_box(const CUtensorMap* map, unsigned from, int x, int y, int z, bool add) {
  if (add)
    add_box(map, from, x, y, z);
  else
    store_box(map, from, x, y, z);
}

// The sum's registers: d[4 j + 2 half + e] is row 16 warp + lane / 4 + 8 half, column 8 j + lane % 4 * 2 + e. Every
// buffer takes 32 columns of a gradient, 64 of a product; no two lanes of an access meet in a bank.
template <Kind kKind>
__device__ inline void store_gradient(const Problem& p, const float (&d)[128], Staging& staging, int group, int row,
                                      int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const auto put = [&](unsigned from, int x, int y) { put_box(&p.c_map, from, x, y, group, p.accumulate); };
#pragma unroll
  for (int q = 0; q < kN / 32; ++q) {
    if (column + 32 * q >= p.n) break;
    staging.begin();
    const unsigned to = staging.buffer();
    if constexpr (kKind == Kind::gradient) {
      const bool odd = lane / 4 % 2 != 0;  // these rows take their tiles in another order
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned line = to + (warp * 16 + lane / 4 + 8 * half) * 128 + lane % 2 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int here = 4 * (4 * q + i) + 2 * half, there = 4 * (4 * q + (i ^ 2)) + 2 * half;
          const int chunk = 2 * (odd ? i ^ 2 : i) + lane % 4 / 2;
          put_shared(line + ((chunk ^ lane / 4) << 4), odd ? d[there] : d[here], odd ? d[there + 1] : d[here + 1]);
        }
      }
      staging.end([&] { put(to, column + 32 * q, row); });
    } else {
      const unsigned box = to + warp / 2 * (kBufferBytes / 2) + lane / 4 % 4 * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int in_line = lane % 4 * 2 + e, chunk = warp % 2 * 4 + lane / 16 + 2 * half;
            put_shared(box + (8 * j + in_line) * 128 + ((chunk ^ in_line) << 4), d[4 * (4 * q + j) + 2 * half + e]);
          }
        }
      }
      staging.end([&] {
        put(to, row, column + 32 * q);
        put(to + kBufferBytes / 2, row + 32, column + 32 * q);
      });
    }
  }
}

__device__ inline std::uint32_t sum_word(const float (&d)[128], int tile, int half) {
  return rounded_pair(d[4 * tile + 2 * half], d[4 * tile + 2 * half + 1]);
}

// word(j, half): two columns, rounded, of tile j, 0 to 7.
template <class F>
__device__ inline void store_columns(Staging& staging, const CUtensorMap* map, int row, int column, int part, F&& word,
                                     bool add = false) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  staging.begin();
  const unsigned to = staging.buffer();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned line = to + (warp * 16 + lane / 4 + 8 * half) * 128 + lane % 4 * 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) put_shared(line + ((j ^ lane / 4) << 4), word(j, half));
  }
  staging.end([&] { put_box(map, to, column, row, part, add); });
}

// Every buffer takes 64 columns of the sum, which are lines of c where they are swapped: each matrix of 8 x 8 is turned
// on its way to shared memory.
template <Kind kKind>
__device__ inline void store_narrow_gradient(const Problem& p, const float (&d)[128], Staging& staging, int group,
                                             int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
  for (int q = 0; q < kN / 64; ++q) {
    const int c = column + 64 * q;
    if (c >= p.n) break;
    if constexpr (kKind == Kind::gradient) {
      store_columns(
          staging, &p.c_map, row, c, group, [&](int j, int half) { return sum_word(d, 8 * q + j, half); },
          p.accumulate);
    } else {
      staging.begin();
      const unsigned to = staging.buffer() + lane % 8 * 128 + (((warp * 2 + lane / 8 % 2) ^ lane % 8) << 4);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const int tile = 8 * q + j;
        put_turned(to + (j + lane / 16) * 8 * 128, sum_word(d, tile, 0), sum_word(d, tile, 1), sum_word(d, tile + 1, 0),
                   sum_word(d, tile + 1, 1));
      }
      staging.end([&] { put_box(&p.c_map, staging.buffer(), row, c, group, p.accumulate); });
    }
  }
}

// SwiGLU of what is stored of gate and up, 16 tiles on.
__device__ inline std::uint32_t activated_word(const float (&d)[128], int tile, int half) {
  const auto stored = [&](int at) { return to_float(from_float<Half>(d[at])); };
  const int at = 4 * tile + 2 * half;
  float y[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float x = stored(at + e);
    y[e] = x * sigmoid<Half>(x) * stored(at + 64 + e);
  }
  return rounded_pair(y[0], y[1]);
}

template <Kind kKind>
__device__ inline void store_product(const Problem& p, const float (&d)[128], Staging& staging, int row, int column) {
#pragma unroll
  for (int q = 0; q < kColumns<kKind> / 64; ++q) {
    const int c = column + 64 * q;
    if (c >= p.n) break;
    store_columns(staging, &p.c_map, row, c, 0, [&](int j, int half) { return sum_word(d, 8 * q + j, half); });
    if constexpr (kKind == Kind::product_activated) {
      store_columns(staging, &p.c_map, row, c, 1, [&](int j, int half) { return sum_word(d, 16 + 8 * q + j, half); });
      store_columns(staging, &p.activated_map, row, c, 0,
                    [&](int j, int half) { return activated_word(d, 8 * q + j, half); });
    }
  }
}

// A tile that the group ends in: the rows below are another group's.
template <int kTiles, class F>
__device__ inline void store_rows(Half* out, Index stride, int row, int end, int column, int columns, F&& word) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + warp * 16 + lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < kTiles; j += 4) {
      std::uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = word(j + i, half);
      transpose_quad(x);
      const int c = column + (j + lane % 4) * 8;
      if (r < end && c < columns)
        *reinterpret_cast<uint4*>(out + static_cast<Index>(r) * stride + c) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

template <Kind kKind>
__device__ inline void store_last_rows(const Problem& p, const float (&d)[128], int row, int end, int column) {
  constexpr int kTiles = kColumns<kKind> / 8;
  store_rows<kTiles>(p.c, p.c_row, row, end, column, p.n, [&](int j, int half) { return sum_word(d, j, half); });
  if constexpr (kKind == Kind::product_activated) {
    store_rows<kTiles>(p.c + p.n, p.c_row, row, end, column, p.n,
                       [&](int j, int half) { return sum_word(d, kTiles + j, half); });
    store_rows<kTiles>(p.activated, p.activated_row, row, end, column, p.n,
                       [&](int j, int half) { return activated_word(d, j, half); });
  }
}

#endif

}  // namespace dstrain::cuda::grouped
