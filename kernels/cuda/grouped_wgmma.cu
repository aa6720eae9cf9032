#include "kernels/cuda/grouped_wgmma.h"

#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/device/dispatch.cuh"

// Tiles of 128 x 256, by two warpgroups of 64 x 256; a third one loads, 64 of the sum at a time, four stages ahead.
// Rows of the operand of 128 come one by one through cp.async, so that they may be gathered, and are zeros past the
// group's end; the operand of 256 comes by TMA, with rows of the next group past the end, which meet those zeros.
// Operands lie in shared memory as wgmma's 128-byte swizzle wants them: rows of 64 elements, in which 16-byte chunk c
// of row r stands at c ^ r % 8. Blocks stay and take every gridDim-th tile.

namespace dstrain::cuda {

namespace {

constexpr int kM = 128, kN = 256, kK = 64, kStages = 4, kThreads = 384, kMostGroups = 1024;
constexpr int kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStageBytes = kABytes + kBBytes;
constexpr std::size_t kShared = 1024 + static_cast<std::size_t>(kStages) * kStageBytes;
using Half = __nv_bfloat16;

// gradient_swapped: c^T = b^T a, for a b that is gathered.
enum class Kind { product, product_transposed, gradient, gradient_swapped };
template <Kind kKind>
constexpr bool kIsGradient = kKind == Kind::gradient || kKind == Kind::gradient_swapped;

struct Problem {
  CUtensorMap b_map;
  void* c;
  const Half* a;
  const std::int32_t *offsets, *a_rows;
  Index c_row, a_row;
  int groups, m, n, k;  // m: columns of a gradient's a; k: of a product
  bool accumulate;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducers = 128;
constexpr int kChunkBytes = kK * 128;  // 64 rows of 64 elements

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ inline void barrier_init(std::uint64_t* bar, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count));
}
__device__ inline void barrier_arrive(std::uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ inline void barrier_expect(std::uint64_t* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(std::uint64_t* bar, unsigned parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra done;\nbra "
      "again;\ndone:\n}\n" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}
// Arrives when every cp.async of the thread so far is done.
__device__ inline void barrier_arrive_after_copies(std::uint64_t* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ inline void copy_16(unsigned to, const Half* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void load_box(unsigned to, const CUtensorMap* map, std::uint64_t* bar, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(shared_address(bar)), "r"(column), "r"(row)
      : "memory");
}

// An operand in shared memory, 128-byte swizzle. Rows of the sum: `chunk` is the distance of 64-element pieces across.
__device__ inline std::uint64_t descriptor(unsigned address, unsigned chunk) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | static_cast<std::uint64_t>(chunk >> 4) << 16 |
         static_cast<std::uint64_t>(1024 >> 4) << 32 | 1ull << 62;
}

// d (64 x 256, of a warpgroup) += a b, 16 summed over.
template <int kTransposeA, int kTransposeB>
__device__ inline void wgmma(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, %130, %131;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),
        "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),
        "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),
        "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),
        "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),
        "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),
        "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]),
        "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),
        "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "n"(kTransposeA), "n"(kTransposeB));
}

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
    column = at / rows * kN;
    next += static_cast<int>(gridDim.x);
    return true;
  }
};

// Four lanes hold two neighbours each of four 8-column tiles; afterwards lane q holds the whole row of tile q.
__device__ inline void transpose_quad(std::uint32_t (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
  // Exchange with lane ^ 1, then lane ^ 2.
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t send = lane & 1 ? x[i] : x[i + 1];
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, send, 1);
    (lane & 1 ? x[i] : x[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t send = lane & 2 ? x[i] : x[i + 2];
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, send, 2);
    (lane & 2 ? x[i] : x[i + 2]) = got;
  }
}

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
  const int group_of_warps = static_cast<int>(threadIdx.x) / 128 - 1, lane = static_cast<int>(threadIdx.x) % 32,
            warp = static_cast<int>(threadIdx.x) / 32 % 4;
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
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // what cp.async wrote
      const unsigned a = memory + stage * kStageBytes + group_of_warps * kChunkBytes,
                     b = memory + stage * kStageBytes + kABytes;
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kK / 16; ++k) {
        constexpr int kStepAlong = 32, kStepAcross = 16 * 128;  // bytes of 16 of the sum
        constexpr bool kAcrossA = kIsGradient<kKind>, kAcrossB = kKind != Kind::product_transposed;
        wgmma<kAcrossA, kAcrossB>(d, descriptor(a + k * (kAcrossA ? kStepAcross : kStepAlong), kChunkBytes),
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

    const int first = row + group_of_warps * 64 + warp * 16 + lane / 4;  // and first + 8
    if constexpr (kKind == Kind::gradient_swapped) {
      const int c = column + lane % 4 * 2;
      float* const out = static_cast<float*>(p.c) + (static_cast<Index>(group) * p.n + c) * p.c_row + first;
      const bool low = first < p.m, high = first + 8 < p.m;
      const auto put = [&](bool there, float* to, float v) {
        if (there) *to = p.accumulate ? *to + v : v;
      };
#pragma unroll kN / 8
      for (int j = 0; j < kN / 8; ++j) {      // registers of a tile: neighbours in c, then those 8 rows on
        const bool inside = c + j * 8 < p.n;  // n is even
        float* const to = out + j * 8 * p.c_row;
        put(inside && low, to, d[4 * j]);
        put(inside && low, to + p.c_row, d[4 * j + 1]);
        put(inside && high, to + 8, d[4 * j + 2]);
        put(inside && high, to + p.c_row + 8, d[4 * j + 3]);
      }
    } else if constexpr (kKind == Kind::gradient) {
      float* const out = static_cast<float*>(p.c) + static_cast<Index>(group) * p.m * p.c_row;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = first + 8 * half;
        if (r >= p.m) continue;
        float* const to = out + static_cast<Index>(r) * p.c_row;
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          const int c = column + j * 8 + lane % 4 * 2;
          if (c >= p.n) continue;  // n is even
          float2 v = make_float2(d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
          if (p.accumulate) {
            const float2 old = *reinterpret_cast<const float2*>(to + c);
            v.x += old.x;
            v.y += old.y;
          }
          *reinterpret_cast<float2*>(to + c) = v;
        }
      }
    } else {
      Half* const out = static_cast<Half*>(p.c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = begin + first + 8 * half;
#pragma unroll
        for (int j = 0; j < kN / 8; j += 4) {
          std::uint32_t x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(d[4 * (j + i) + 2 * half], d[4 * (j + i) + 2 * half + 1]);
            x[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
          }
          transpose_quad(x);
          const int c = column + (j + lane % 4) * 8;
          if (r < end && c < p.n)
            *reinterpret_cast<uint4*>(out + static_cast<Index>(r) * p.c_row + c) = make_uint4(x[0], x[1], x[2], x[3]);
        }
      }
    }
  }
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
                           .across = (p.n + kN - 1) / kN,
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

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
             "cuTensorMapEncodeTiled");
  require(found != nullptr, ExitCode::device, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(found);
}

// (rows, columns) in boxes of `height` rows and 64 columns.
CUtensorMap box_map(const Tensor& t, int height) {
  static const Encode encode = encoder();
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(t.dim(1)), static_cast<cuuint64_t>(t.dim(0))};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(t.stride(0)) * sizeof(Half)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(height)}, steps[] = {1, 1};
  const CUresult e = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, t.data, sizes, strides, box, steps,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(e == CUDA_SUCCESS, ExitCode::device, "cuTensorMapEncodeTiled of {}: error {}", t.to_string(),
          static_cast<int>(e));
  return map;
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
  return op.c.dtype == DType::bf16 && aligned_rows(op.a) && aligned_rows(op.b) && aligned_rows(op.c) &&
         op.groups() <= kMostGroups && fits(op.b.dim(0)) && hopper();
}

bool can_run_wgmma(const GroupedGradient& op) {
  return op.a.dtype == DType::bf16 && aligned_rows(op.a) && aligned_rows(op.b) && aligned_rows(op.c) &&
         op.groups() <= kMostGroups && op.rows > 0 && fits(op.rows) &&
         !(op.a_rows_of.defined() && op.b_rows_of.defined()) && hopper();
}

void grouped_matmul_wgmma(Stream& stream, const GroupedMatmul& op) {
  const Problem p{.b_map = box_map(op.b, op.transpose_b ? kN : kK),
                  .c = op.c.data,
                  .a = pointer<Half>(op.a),
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = op.rows_of.defined() ? op.rows_of.as<std::int32_t>() : nullptr,
                  .c_row = op.c.stride(0),
                  .a_row = op.a.stride(0),
                  .groups = static_cast<int>(op.groups()),
                  .m = 0,
                  .n = static_cast<int>(op.c.dim(1)),
                  .k = static_cast<int>(op.a.dim(1)),
                  .accumulate = false};
  if (op.transpose_b)
    start<Kind::product_transposed>(stream, p, GroupedMatmul::name);
  else
    start<Kind::product>(stream, p, GroupedMatmul::name);
}

void grouped_gradient_wgmma(Stream& stream, const GroupedGradient& op) {
  const bool swapped = op.b_rows_of.defined();
  const Tensor &a = swapped ? op.b : op.a, &b = swapped ? op.a : op.b;
  const Tensor& a_rows_of = swapped ? op.b_rows_of : op.a_rows_of;
  const Problem p{.b_map = box_map(b, kK),
                  .c = op.c.data,
                  .a = pointer<Half>(a),
                  .offsets = op.offsets.as<std::int32_t>(),
                  .a_rows = a_rows_of.defined() ? a_rows_of.as<std::int32_t>() : nullptr,
                  .c_row = op.c.stride(0),
                  .a_row = a.stride(0),
                  .groups = static_cast<int>(op.groups()),
                  .m = static_cast<int>(a.dim(1)),
                  .n = static_cast<int>(b.dim(1)),
                  .k = 0,
                  .accumulate = op.write == Write::accumulate};
  if (swapped)
    start<Kind::gradient_swapped>(stream, p, GroupedGradient::name);
  else
    start<Kind::gradient>(stream, p, GroupedGradient::name);
}

}  // namespace dstrain::cuda
