#pragma once
// Hopper's own instructions: mbarriers, bulk copies through tensor maps (TMA), and where products of warpgroups find
// their operands. Only for code under __CUDA_ARCH_FEAT_SM90_ALL.

#include "kernels/cuda/device/dispatch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace dstrain::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
__device__ inline void copy_16(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Boxes of kernels/cuda/tensor_map.h.
__device__ inline void load_box(unsigned to, const CUtensorMap* map, std::uint64_t* bar, int x, int y, int z = 0) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// `bytes` in a row, a multiple of 16 as both addresses are.
__device__ inline void load_row(unsigned to, const void* from, int bytes, std::uint64_t* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(bar))
               : "memory");
}

// What threads wrote to shared memory before is seen by bulk copies and products after it.
__device__ inline void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Clipped at the tensor's borders. The thread that stores or adds commits and waits.
__device__ inline void store_box(const CUtensorMap* map, unsigned from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ inline void add_box(const CUtensorMap* map, unsigned from, int x, int y, int z) {
  asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the last kPending groups of this thread's stores have read their shared memory.
template <int kPending>
__device__ inline void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ inline void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Among 128 threads that give the same number, 1 to 15.
__device__ inline void sync_warpgroup(int number) { asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory"); }

__device__ inline std::uint32_t rounded_pair(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

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

// An operand in shared memory, 128-byte swizzle. Rows of the sum: `chunk` is the distance of 64-element pieces across.
__device__ inline std::uint64_t descriptor(unsigned address, unsigned chunk) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | static_cast<std::uint64_t>(chunk >> 4) << 16 |
         static_cast<std::uint64_t>(1024 >> 4) << 32 | 1ull << 62;
}

#endif

}  // namespace dstrain::cuda
