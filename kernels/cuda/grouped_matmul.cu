#include "kernels/grouped_matmul.h"

#include "kernels/cuda/device/dispatch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/grouped_wgmma.h"
#include "kernels/swiglu.h"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

// What a kernel reads and writes. Products: c's rows are the groups'; gradients: every group has m rows of c.
struct Problem {
  void* c;
  const void *a, *b;
  const std::int32_t *offsets, *a_rows, *b_rows;
  Index c_row, a_row, b_row;
  int groups, m, n, k;  // m: of a group's gradient
  bool accumulate;
};

// The group and the first row of the block's tile of `height` rows; group -1: none is left. By the whole block.
struct Place {
  int group, begin, end;
};
__device__ Place find_place(const std::int32_t* offsets, int groups, int tile, int height) {
  __shared__ Place place;
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x), each = (groups + 31) / 32;
    if (lane == 0) place.group = -1;
    __syncwarp();
    int mine = 0;
    for (int g = lane * each; g < min(groups, (lane + 1) * each); ++g)
      mine += (offsets[g + 1] - offsets[g] + height - 1) / height;
    int before = mine;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, d);
      if (lane >= d) before += other;
    }
    before -= mine;
    if (tile >= before && tile < before + mine) {
      for (int g = lane * each; g < min(groups, (lane + 1) * each); ++g) {
        const int tiles = (offsets[g + 1] - offsets[g] + height - 1) / height;
        if (tile < before + tiles) {
          place = {g, offsets[g] + (tile - before) * height, offsets[g + 1]};
          break;
        }
        before += tiles;
      }
    }
  }
  __syncthreads();
  return place;
}

// ---- bf16: tiles of 128 x 128, sums over 32 at a time, by 8 warps of 32 x 64 ----

constexpr int kM = 128, kN = 128, kK = 32, kPad = 8, kStages = 3;
constexpr int kWide = 128 + kPad, kNarrow = kK + kPad;  // strides of tiles in shared memory
constexpr int kTile = 128 * kNarrow > kK* kWide ? 128 * kNarrow : kK* kWide;
using Half = __nv_bfloat16;

__device__ inline void copy_16(Half* to, const Half* from, bool there) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes));
}

// Rows [0, height) x columns [0, width) of a matrix into shared memory, 8 at a time; zeros where row or column are out
// of bounds. row(i) is a pointer to the row's first element or null.
template <bool kVector, class Row>
__device__ inline void load_tile(Half* to, int stride, int height, int width, int column, int columns, Row row) {
  const int across = width / 8;
  for (int item = static_cast<int>(threadIdx.x); item < height * across; item += kThreads) {
    const int i = item / across, j = item % across * 8;
    const Half* const from = row(i);
    Half* const at = to + i * stride + j;
    if constexpr (kVector) {
      const bool there = from != nullptr && column + j < columns;
      copy_16(at, there ? from + column + j : nullptr, there);
    } else {
      for (int e = 0; e < 8; ++e)
        at[e] = from != nullptr && column + j + e < columns ? from[column + j + e] : __float2bfloat16_rn(0.0f);
    }
  }
}

// The left operand of rows (m) [0, 16), summed over [0, 16), of a tile stored by the index that is summed over.
__device__ inline cuda::Fragment left_operand_transposed(const Half* m, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return cuda::load_matrices_transposed(m + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
}

// kAcross: operands are stored by the index that is summed over.
template <bool kLeftAcross, bool kRightAcross>
__device__ inline void multiply_tile(float (&c)[2][8][4], const Half* a, const Half* b, int warp_m, int warp_n) {
#pragma unroll
  for (int k = 0; k < kK; k += 16) {
    cuda::Fragment left[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp_m * 32 + i * 16;
      left[i] = kLeftAcross ? left_operand_transposed(a + k * kWide + row, kWide)
                            : cuda::left_operand(a + row * kNarrow + k, kNarrow);
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const int column = warp_n * 64 + j * 8;
      const cuda::Fragment right = kRightAcross ? cuda::right_operands(b + k * kWide + column, kWide)
                                                : cuda::right_operands_of_rows(b + column * kNarrow + k, kNarrow);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        cuda::multiply(c[i][j], left[i], right.r[0], right.r[1]);
        cuda::multiply(c[i][j + 1], left[i], right.r[2], right.r[3]);
      }
    }
  }
}

// load(stage, step) fills a stage; steps of kK.
template <bool kLeftAcross, bool kRightAcross, class Load>
__device__ inline void multiply_steps(float (&c)[2][8][4], Half* memory, int steps, int warp_m, int warp_n, Load load) {
  const auto stage = [&](int s) { return memory + s % kStages * 2 * kTile; };
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(stage(s), stage(s) + kTile, s);
    asm volatile("cp.async.commit_group;");
  }
  for (int s = 0; s < steps; ++s) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    const int next = s + kStages - 1;
    if (next < steps) load(stage(next), stage(next) + kTile, next);
    asm volatile("cp.async.commit_group;");
    multiply_tile<kLeftAcross, kRightAcross>(c, stage(s), stage(s) + kTile, warp_m, warp_n);
  }
}

// store(row, column, x, y): two neighbours.
template <class Store>
__device__ inline void store_tile(const float (&c)[2][8][4], int warp_m, int warp_n, Store store) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int row = warp_m * 32 + i * 16 + lane / 4, column = warp_n * 64 + j * 8 + lane % 4 * 2;
      store(row, column, c[i][j][0], c[i][j][1]);
      store(row + 8, column, c[i][j][2], c[i][j][3]);
    }
}

template <bool kTransposeB, bool kVector>
__global__ void __launch_bounds__(kThreads) product_kernel(Problem p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Place place = find_place(p.offsets, p.groups, static_cast<int>(blockIdx.y), kM);
  if (place.group < 0) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, warp_m = warp % 4, warp_n = warp / 4;
  const int column = static_cast<int>(blockIdx.x) * kN;
  const Half* const a = static_cast<const Half*>(p.a);
  const Half* const b =
      static_cast<const Half*>(p.b) + static_cast<Index>(place.group) * (kTransposeB ? p.n : p.k) * p.b_row;
  float c[2][8][4] = {};
  const auto load = [&](Half* left, Half* right, int step) {
    const int k = step * kK;
    load_tile<kVector>(left, kNarrow, kM, kK, k, p.k, [&](int i) -> const Half* {
      const int row = place.begin + i;
      if (row >= place.end) return nullptr;
      return a + static_cast<Index>(p.a_rows ? p.a_rows[row] : row) * p.a_row;
    });
    if constexpr (kTransposeB)
      load_tile<kVector>(right, kNarrow, kN, kK, k, p.k, [&](int i) -> const Half* {
        return column + i < p.n ? b + static_cast<Index>(column + i) * p.b_row : nullptr;
      });
    else
      load_tile<kVector>(right, kWide, kK, kN, column, p.n, [&](int i) -> const Half* {
        return k + i < p.k ? b + static_cast<Index>(k + i) * p.b_row : nullptr;
      });
  };
  multiply_steps<false, !kTransposeB>(c, reinterpret_cast<Half*>(memory), (p.k + kK - 1) / kK, warp_m, warp_n, load);
  Half* const out = static_cast<Half*>(p.c);
  store_tile(c, warp_m, warp_n, [&](int i, int j, float x, float y) {
    const int row = place.begin + i, at = column + j;
    if (row >= place.end || at >= p.n) return;
    Half* const to = out + static_cast<Index>(row) * p.c_row + at;
    if (kVector) {
      *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x, y);
    } else {
      to[0] = __float2bfloat16_rn(x);
      if (at + 1 < p.n) to[1] = __float2bfloat16_rn(y);
    }
  });
}

template <class Out, bool kVector>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Problem p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int group = static_cast<int>(blockIdx.z), begin = p.offsets[group], end = p.offsets[group + 1];
  const int warp = static_cast<int>(threadIdx.x) / 32, warp_m = warp % 4, warp_n = warp / 4;
  const int row = static_cast<int>(blockIdx.y) * kM, column = static_cast<int>(blockIdx.x) * kN;
  const auto load = [&](Half* left, Half* right, int step) {
    const auto from = [&](const void* data, const std::int32_t* rows, Index stride, int i) -> const Half* {
      const int at = begin + step * kK + i;
      return at < end ? static_cast<const Half*>(data) + static_cast<Index>(rows ? rows[at] : at) * stride : nullptr;
    };
    load_tile<kVector>(left, kWide, kK, kM, row, p.m, [&](int i) { return from(p.a, p.a_rows, p.a_row, i); });
    load_tile<kVector>(right, kWide, kK, kN, column, p.n, [&](int i) { return from(p.b, p.b_rows, p.b_row, i); });
  };
  float c[2][8][4] = {};
  multiply_steps<true, true>(c, reinterpret_cast<Half*>(memory), (end - begin + kK - 1) / kK, warp_m, warp_n, load);
  Out* const out = static_cast<Out*>(p.c) + static_cast<Index>(group) * p.m * p.c_row;
  const auto put = [&](Out& to, float x) { to = cuda::from_float<Out>(p.accumulate ? cuda::to_float(to) + x : x); };
  store_tile(c, warp_m, warp_n, [&](int i, int j, float x, float y) {
    if (row + i >= p.m) return;
    Out* const to = out + static_cast<Index>(row + i) * p.c_row + column + j;
    if (column + j < p.n) put(to[0], x);
    if (column + j + 1 < p.n) put(to[1], y);
  });
}

// ---- f32: tiles of 64 x 64, 16 at a time, 4 x 4 a thread ----

constexpr int kSide = 64, kStep = 16;

// left(i, k) and right(k, j) are elements of the tile, 0 out of bounds; sums over [0, steps).
template <class Left, class Right>
__device__ inline void multiply_f32(float (&c)[4][4], int steps, Left left, Right right) {
  __shared__ float a[kStep][kSide + 4], b[kStep][kSide + 4];
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  for (int k = 0; k < steps; k += kStep) {
    for (int item = static_cast<int>(threadIdx.x); item < kSide * kStep; item += kThreads) {
      a[item % kStep][item / kStep] = left(item / kStep, k + item % kStep);
      b[item / kSide][item % kSide] = right(k + item / kSide, item % kSide);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kStep; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] = fmaf(a[s][ty * 4 + i], b[s][tx * 4 + j], c[i][j]);
    __syncthreads();
  }
}

template <bool kTransposeB>
__global__ void __launch_bounds__(kThreads) product_f32_kernel(Problem p) {
  const Place place = find_place(p.offsets, p.groups, static_cast<int>(blockIdx.y), kSide);
  if (place.group < 0) return;
  const int column = static_cast<int>(blockIdx.x) * kSide;
  const float* const a = static_cast<const float*>(p.a);
  const float* const b =
      static_cast<const float*>(p.b) + static_cast<Index>(place.group) * (kTransposeB ? p.n : p.k) * p.b_row;
  float c[4][4] = {};
  multiply_f32(
      c, p.k,
      [&](int i, int k) {
        const int row = place.begin + i;
        if (row >= place.end || k >= p.k) return 0.0f;
        return a[static_cast<Index>(p.a_rows ? p.a_rows[row] : row) * p.a_row + k];
      },
      [&](int k, int j) {
        if (k >= p.k || column + j >= p.n) return 0.0f;
        return kTransposeB ? b[static_cast<Index>(column + j) * p.b_row + k]
                           : b[static_cast<Index>(k) * p.b_row + column + j];
      });
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int row = place.begin + ty * 4 + i, at = column + tx * 4 + j;
      if (row < place.end && at < p.n) static_cast<float*>(p.c)[static_cast<Index>(row) * p.c_row + at] = c[i][j];
    }
}

__global__ void __launch_bounds__(kThreads) gradient_f32_kernel(Problem p) {
  const int group = static_cast<int>(blockIdx.z), begin = p.offsets[group], end = p.offsets[group + 1];
  const int row = static_cast<int>(blockIdx.y) * kSide, column = static_cast<int>(blockIdx.x) * kSide;
  const auto element = [&](const void* data, const std::int32_t* rows, Index stride, int k, int at, int limit) {
    if (begin + k >= end || at >= limit) return 0.0f;
    const int r = begin + k;
    return static_cast<const float*>(data)[static_cast<Index>(rows ? rows[r] : r) * stride + at];
  };
  float c[4][4] = {};
  multiply_f32(
      c, end - begin, [&](int i, int k) { return element(p.a, p.a_rows, p.a_row, k, row + i, p.m); },
      [&](int k, int j) { return element(p.b, p.b_rows, p.b_row, k, column + j, p.n); });
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float* const out = static_cast<float*>(p.c) + static_cast<Index>(group) * p.m * p.c_row;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int r = row + ty * 4 + i, at = column + tx * 4 + j;
      if (r >= p.m || at >= p.n) continue;
      float& to = out[static_cast<Index>(r) * p.c_row + at];
      to = p.accumulate ? to + c[i][j] : c[i][j];
    }
}

bool vectors(const Tensor& t) { return cuda::aligned_rows(t); }

template <class Kernel>
void start(Stream& stream, Kernel kernel, dim3 blocks, std::size_t shared, const Problem& p, const char* name) {
  if (shared > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
               name);
  kernel<<<blocks, kThreads, shared, cuda::stream_of(stream)>>>(p);
  cuda::check_launch(name);
}

constexpr std::size_t kShared = static_cast<std::size_t>(kStages) * 2 * kTile * sizeof(Half);

}  // namespace

void run(Cuda, Stream& stream, const GroupedMatmul& op) {
  const Index rows = op.c.dim(0), n = op.c.dim(1);
  if (rows == 0 || n == 0) return;
  if (cuda::can_run_wgmma(op)) return cuda::grouped_matmul_wgmma(stream, op);
  const auto activate = [&] {
    if (op.activated.defined()) run(Cuda{}, stream, SwiGluForward{.y = op.activated, .gate_up = op.c});
  };
  const Problem p{.c = op.c.data,
                  .a = op.a.data,
                  .b = op.b.data,
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = op.rows_of.defined() ? op.rows_of.as<std::int32_t>() : nullptr,
                  .b_rows = nullptr,
                  .c_row = op.c.stride(0),
                  .a_row = op.a.stride(0),
                  .b_row = op.b.stride(0),
                  .groups = static_cast<int>(op.groups()),
                  .m = 0,
                  .n = static_cast<int>(n),
                  .k = static_cast<int>(op.a.dim(1)),
                  .accumulate = false};
  const Index side = op.c.dtype == DType::bf16 ? kM : kSide;
  // A group ends with at most one tile that is not full.
  const dim3 blocks(cuda::grid(cuda::div_up(n, side)), cuda::grid(rows / side + std::min(rows, op.groups())));
  if (op.c.dtype == DType::f32) {
    start(stream, op.transpose_b ? product_f32_kernel<true> : product_f32_kernel<false>, blocks, 0, p,
          GroupedMatmul::name);
    return activate();
  }
  const bool wide = vectors(op.a) && vectors(op.b) && vectors(op.c);
  if (op.transpose_b)
    start(stream, wide ? product_kernel<true, true> : product_kernel<true, false>, blocks, kShared, p,
          GroupedMatmul::name);
  else
    start(stream, wide ? product_kernel<false, true> : product_kernel<false, false>, blocks, kShared, p,
          GroupedMatmul::name);
  activate();
}

void run(Cuda, Stream& stream, const GroupedGradient& op) {
  const Index m = op.a.dim(1), n = op.b.dim(1), groups = op.groups();
  if (m == 0 || n == 0) return;
  if (cuda::can_run_wgmma(op)) return cuda::grouped_gradient_wgmma(stream, op);
  const Problem p{.c = op.c.data,
                  .a = op.a.data,
                  .b = op.b.data,
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = op.a_rows_of.defined() ? op.a_rows_of.as<std::int32_t>() : nullptr,
                  .b_rows = op.b_rows_of.defined() ? op.b_rows_of.as<std::int32_t>() : nullptr,
                  .c_row = op.c.stride(0),
                  .a_row = op.a.stride(0),
                  .b_row = op.b.stride(0),
                  .groups = static_cast<int>(groups),
                  .m = static_cast<int>(m),
                  .n = static_cast<int>(n),
                  .k = 0,
                  .accumulate = op.write == Write::accumulate};
  const Index side = op.a.dtype == DType::bf16 ? kM : kSide;
  const dim3 blocks(cuda::grid(cuda::div_up(n, side)), cuda::grid(cuda::div_up(m, side)), cuda::grid(groups));
  if (op.a.dtype == DType::f32) return start(stream, gradient_f32_kernel, blocks, 0, p, GroupedGradient::name);
  const bool wide = vectors(op.a) && vectors(op.b);
  cuda::dispatch_float(op.c.dtype, [&](auto zero) {
    using Out = decltype(zero);
    start(stream, wide ? gradient_kernel<Out, true> : gradient_kernel<Out, false>, blocks, kShared, p,
          GroupedGradient::name);
  });
}

}  // namespace dstrain
