#include "kernels/cuda/grouped_wgmma.h"

#include <algorithm>

#include "kernels/cuda/device/grouped_tile.cuh"
#include "kernels/cuda/device/warpgroup_products.cuh"

// Tiles of 128 x 256, by two warpgroups of 64 x 256; a third one loads, 64 of the sum at a time, four stages ahead.
// Rows of the operand of 128 come one by one through cp.async, so that they may be gathered, and are zeros past the
// group's end; the operand of 256 comes by TMA, with rows of the next group past the end, which meet those zeros.
// Operands lie in shared memory as wgmma's 128-byte swizzle wants them: rows of 64 elements, in which 16-byte chunk c
// of row r stands at c ^ r % 8. Blocks stay and take every gridDim-th tile. Results leave by way of two buffers of 8 kB
// a warpgroup, which TMA empties while the next is filled and the next tile's products begin.

namespace dstrain::cuda {

namespace {

using namespace grouped;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducers = 128;
constexpr int kChunkBytes = kK * 128;  // 64 rows of 64 elements

// The tiles of a block, in order: group, first row of the tile and the group's end (product), columns.
template <Kind kKind>
struct Tiles {
  const std::int32_t* offsets;  // in shared memory
  int groups, across, down;     // down: tiles of a gradient's rows
  int next, group = 0, before = 0;

  __device__ int size(int g) const {
    const int rows = offsets[g + 1] - offsets[g];
    return (kIsGradient<kKind> ? down : (rows + kM - 1) / kM) * across;
  }
  // Moves to the next tile; false when none is left.
  __device__ bool advance(int& row, int& column) {
    while (group < groups && next >= before + size(group)) before += size(group++);
    if (group >= groups) return false;
    const int at = next - before, rows = size(group) / across;
    // Down first: neighbours share columns of b.
    row = at % rows * kM;
    column = at / rows * kColumns<kKind>;
    next += static_cast<int>(gridDim.x);
    return true;
  }
};

template <Kind kKind>
__device__ inline void produce(const Problem& p, unsigned memory, std::uint64_t* full, std::uint64_t* empty,
                               Tiles<kKind> tiles) {
  const int t = static_cast<int>(threadIdx.x);
  int row = 0, column = 0, stage = 0;
  unsigned parity = 1;
  while (tiles.advance(row, column)) {
    const int group = tiles.group, begin = tiles.offsets[group], end = tiles.offsets[group + 1];
    const int length = kIsGradient<kKind> ? end - begin : p.k, steps = (length + kK - 1) / kK;
    const Half* rows[8];  // of a product: this thread's rows of a, or null
    if constexpr (!kIsGradient<kKind>) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = begin + row + t / 8 + 16 * i;
        rows[i] = at < end ? p.a + static_cast<Index>(p.a_rows ? p.a_rows[at] : at) * p.a_row + t % 8 * 8 : nullptr;
      }
    }
    // Of a gradient: where this thread's rows of the next step lie. Asked for a step ahead: the answer takes as long as
    // the products of a step.
    int next[4];
    const auto find_rows = [&](int s) {
      const int first = begin + s * kK + t / 8;
      if (p.a_rows == nullptr) {
#pragma unroll
        for (int i = 0; i < 4; ++i) next[i] = min(first + 16 * i, end - 1);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) next[i] = p.a_rows[min(first + 16 * i, end - 1)];
      }
    };
    if (kIsGradient<kKind> && steps > 0) find_rows(0);
    for (int s = 0; s < steps; ++s) {
      barrier_wait(empty + stage, parity);
      const unsigned a = memory + stage * kStageBytes, b = a + kABytes;
      if (t == 0) {
        barrier_expect(full + stage, kBBytes);
        if constexpr (kKind == Kind::product_transposed) {
          load_box(b, &p.b_map, full + stage, s * kK, group * p.n + column);
        } else if constexpr (kKind == Kind::product_activated) {
          load_box(b, &p.b_map, full + stage, s * kK, group * 2 * p.n + column);
          load_box(b + kBBytes / 2, &p.b_map, full + stage, s * kK, (group * 2 + 1) * p.n + column);
        } else {
          const int first = kIsGradient<kKind> ? begin + s * kK : group * p.k + s * kK;
#pragma unroll
          for (int i = 0; i < kN / 64; ++i)
            load_box(b + i * kChunkBytes, &p.b_map, full + stage, column + i * 64, first);
        }
      }
      if constexpr (!kIsGradient<kKind>) {
        const bool inside = s * kK + t % 8 * 8 < p.k;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = t / 8 + 16 * i;
          copy_16(a + r * 128 + ((t % 8 ^ r % 8) << 4), rows[i] + s * kK, rows[i] != nullptr && inside);
        }
      } else {
        // A thread takes a chunk of every 16th row, of every piece of 64 columns.
        const int here[4] = {next[0], next[1], next[2], next[3]};
        if (s + 1 < steps) find_rows(s + 1);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = t / 8 + 16 * i, c = row + t % 8 * 8;
          const bool there = begin + s * kK + r < end;
          const Half* const from = p.a + here[i] * p.a_row + c;
          const unsigned to = a + r * 128 + ((t % 8 ^ r % 8) << 4);
#pragma unroll
          for (int j = 0; j < kM / 64; ++j) copy_16(to + j * kChunkBytes, from + j * 64, there && c + j * 64 < p.m);
        }
      }
      barrier_arrive_after_copies(full + stage);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

template <Kind kKind>
__device__ inline void consume(const Problem& p, unsigned memory, std::uint64_t* full, std::uint64_t* empty,
                               Tiles<kKind> tiles) {
  const int group_of_warps = static_cast<int>(threadIdx.x) / 128 - 1, lane = static_cast<int>(threadIdx.x) % 32;
  Staging staging{memory + kBuffersAt + group_of_warps * 2 * kBufferBytes, 1 + group_of_warps};
  int row = 0, column = 0, stage = 0;
  unsigned parity = 0;
  while (tiles.advance(row, column)) {
    const int group = tiles.group, begin = tiles.offsets[group], end = tiles.offsets[group + 1];
    const int length = kIsGradient<kKind> ? end - begin : p.k, steps = (length + kK - 1) / kK;
    float d[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) d[i] = 0;
    int last = -1;
    for (int s = 0; s < steps; ++s) {
      barrier_wait(full + stage, parity);
      fence_async();  // what cp.async wrote
      const unsigned a = memory + stage * kStageBytes + group_of_warps * kChunkBytes,
                     b = memory + stage * kStageBytes + kABytes;
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kK / 16; ++k) {
        constexpr int kStepAlong = 32, kStepAcross = 16 * 128;  // bytes of 16 of the sum
        constexpr bool kAcrossA = kIsGradient<kKind>, kAcrossB = !kTransposedB<kKind>;
        product<kAcrossA, kAcrossB>(d, descriptor(a + k * (kAcrossA ? kStepAcross : kStepAlong), kChunkBytes),
                                    descriptor(b + k * (kAcrossB ? kStepAcross : kStepAlong), kChunkBytes));
      }
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (last >= 0 && lane == 0) barrier_arrive(empty + last);
      last = stage;
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (last >= 0 && lane == 0) barrier_arrive(empty + last);

    if constexpr (kIsGradient<kKind>) {
      if (p.narrow)
        store_narrow_gradient<kKind>(p, d, staging, group, row + group_of_warps * 64, column);
      else
        store_gradient<kKind>(p, d, staging, group, row + group_of_warps * 64, column);
    } else if (begin + row + kM <= end) {
      store_product<kKind>(p, d, staging, begin + row + group_of_warps * 64, column);
    } else {
      store_last_rows<kKind>(p, d, begin + row + group_of_warps * 64, end, column);
    }
  }
  if (threadIdx.x % 128 == 0) wait_stores();
}

#endif

template <Kind kKind>
__global__ void __launch_bounds__(kThreads, 1) grouped_kernel(const __grid_constant__ Problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char dynamic[];
  __shared__ std::uint64_t full[kStages], empty[kStages];
  __shared__ std::int32_t offsets[kMostGroups + 1];
  const unsigned memory = (shared_address(dynamic) + 1023) / 1024 * 1024;
  for (int i = static_cast<int>(threadIdx.x); i <= p.groups; i += kThreads) offsets[i] = p.offsets[i];
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, kProducers + 1);
      barrier_init(empty + i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const Tiles<kKind> tiles{.offsets = offsets,
                           .groups = p.groups,
                           .across = (p.n + kColumns<kKind> - 1) / kColumns<kKind>,
                           .down = (p.m + kM - 1) / kM,
                           .next = static_cast<int>(blockIdx.x)};
  if (threadIdx.x < kProducers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    produce<kKind>(p, memory, full, empty, tiles);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    consume<kKind>(p, memory, full, empty, tiles);
  }
#else
  asm volatile("trap;");  // built for sm_90 without its own features
#endif
}

// (rows, columns) bf16 in boxes of `height` rows and 64 columns, of `parts` equal parts of the columns.
CUtensorMap box_map(const Tensor& t, int height, Index parts = 1) {
  const Index columns = t.dim(1) / parts, row = t.stride(0) * static_cast<Index>(sizeof(Half));
  return tensor_map({.data = t.data,
                     .sizes = {columns, t.dim(0), parts},
                     .strides = {row, parts == 1 ? row : columns * static_cast<Index>(sizeof(Half))},
                     .box = {64, height, 1}});
}

template <Kind kKind>
void start(Stream& stream, const Problem& p, const char* name) {
  cuda_check(cudaFuncSetAttribute(grouped_kernel<kKind>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(kShared)),
             name);
  int device = 0, all = 0;
  cuda_check(cudaGetDevice(&device), name);
  cuda_check(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, device), name);
  const Index blocks = std::max(1, all - stream.reserved_multiprocessors());
  grouped_kernel<kKind><<<grid(blocks), kThreads, kShared, stream_of(stream)>>>(p);
  check_launch(name);
}

// Whether the code that runs here is Hopper's own: on another GPU, or in a build for others, it is not.
bool hopper() {
  cudaFuncAttributes code{};
  cuda_check(cudaFuncGetAttributes(&code, grouped_kernel<Kind::product>), "cudaFuncGetAttributes");
  return code.binaryVersion == 90;
}

bool fits(Index n) { return n < (Index{1} << 31); }

}  // namespace

bool can_run_wgmma(const GroupedMatmul& op) {
  if (op.activated.defined() && (!aligned_rows(op.activated) || op.activated.dim(1) % 8 != 0)) return false;
  return op.c.dtype == DType::bf16 && aligned_rows(op.a) && aligned_rows(op.b) && aligned_rows(op.c) &&
         op.groups() <= kMostGroups && fits(op.b.dim(0)) && hopper();
}

bool can_run_wgmma(const GroupedGradient& op) {
  return op.a.dtype == DType::bf16 && aligned_rows(op.a) && aligned_rows(op.b) && aligned_rows(op.c) &&
         op.groups() <= kMostGroups && op.rows > 0 && fits(op.rows) &&
         !(op.a_rows_of.defined() && op.b_rows_of.defined()) && hopper();
}

void grouped_matmul_wgmma(Stream& stream, const GroupedMatmul& op) {
  const bool activated = op.activated.defined();
  const Index n = op.c.dim(1) / (activated ? 2 : 1);
  const Problem p{.b_map = box_map(op.b, activated        ? kN / 2
                                         : op.transpose_b ? kN
                                                          : kK),
                  .c_map = box_map(op.c, kM / 2, activated ? 2 : 1),
                  .activated_map = activated ? box_map(op.activated, kM / 2) : CUtensorMap{},
                  .c = pointer<Half>(op.c),
                  .activated = activated ? pointer<Half>(op.activated) : nullptr,
                  .a = pointer<Half>(op.a),
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = op.rows_of.defined() ? op.rows_of.as<std::int32_t>() : nullptr,
                  .c_row = op.c.stride(0),
                  .activated_row = activated ? op.activated.stride(0) : 0,
                  .a_row = op.a.stride(0),
                  .groups = static_cast<int>(op.groups()),
                  .m = 0,
                  .n = static_cast<int>(n),
                  .k = static_cast<int>(op.a.dim(1)),
                  .accumulate = false,
                  .narrow = false};
  if (activated)
    start<Kind::product_activated>(stream, p, GroupedMatmul::name);
  else if (op.transpose_b)
    start<Kind::product_transposed>(stream, p, GroupedMatmul::name);
  else
    start<Kind::product>(stream, p, GroupedMatmul::name);
}

void grouped_gradient_wgmma(Stream& stream, const GroupedGradient& op) {
  const bool swapped = op.b_rows_of.defined();
  const Tensor &a = swapped ? op.b : op.a, &b = swapped ? op.a : op.b;
  const Tensor& a_rows_of = swapped ? op.b_rows_of : op.a_rows_of;
  const Index m = op.a.dim(1), n = op.b.dim(1);
  const bool narrow = op.c.dtype == DType::bf16;
  const Index line = op.c.stride(0) * static_cast<Index>(size_of(op.c.dtype));
  const Problem p{.b_map = box_map(b, kK),
                  .c_map = tensor_map({.dtype = op.c.dtype,
                                       .data = op.c.data,
                                       .sizes = {n, m, op.groups()},
                                       .strides = {line, line * m},
                                       .box = {narrow ? 64 : 32, swapped && !narrow ? 32 : kM / 2, 1}}),
                  .activated_map = {},
                  .c = nullptr,
                  .activated = nullptr,
                  .a = pointer<Half>(a),
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = a_rows_of.defined() ? a_rows_of.as<std::int32_t>() : nullptr,
                  .c_row = 0,
                  .activated_row = 0,
                  .a_row = a.stride(0),
                  .groups = static_cast<int>(op.groups()),
                  .m = static_cast<int>(a.dim(1)),
                  .n = static_cast<int>(b.dim(1)),
                  .k = 0,
                  .accumulate = op.write == Write::accumulate,
                  .narrow = narrow};
  if (swapped)
    start<Kind::gradient_swapped>(stream, p, GroupedGradient::name);
  else
    start<Kind::gradient>(stream, p, GroupedGradient::name);
}

}  // namespace dstrain::cuda
