#pragma once
// Products of bf16 tiles in shared memory on tensor cores, summed in f32: mma.m16n8k16 of a warp (PTX ISA, "Matrix
// fragments for mma.m16n8k16"). Rows of tiles start at multiples of 16 bytes; `stride` is their distance in elements.
//
// The sums of a 16 x 8 tile: lane l holds rows l / 4 (elements 0 and 1) and l / 4 + 8 (2 and 3), columns l % 4 * 2 and
// the next one.

#include <cuda_bf16.h>

#include <cstdint>

namespace dstrain::cuda {

// A 16 x 16 left operand; or two right operands of 16 x 8, two registers each.
struct Fragment {
  std::uint32_t r[4];
};

// Four 8 x 8 tiles; lane l gives the address of row l % 8 of tile l / 8.
__device__ inline Fragment load_matrices(const __nv_bfloat16* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
  return f;
}
__device__ inline Fragment load_matrices_transposed(const __nv_bfloat16* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
  return f;
}

// c += a b
__device__ inline void multiply(float (&c)[4], const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded to bf16, the first in the low half.
__device__ inline std::uint32_t pack(float low, float high) {
  const std::uint32_t l = __bfloat16_as_ushort(__float2bfloat16_rn(low));
  const std::uint32_t h = __bfloat16_as_ushort(__float2bfloat16_rn(high));
  return h << 16 | l;
}

// The left operand of rows [0, 16), columns [0, 16) of m.
__device__ inline Fragment left_operand(const __nv_bfloat16* m, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return load_matrices(m + lane % 16 * stride + lane / 16 * 8);
}
// Two right operands of m^T: rows [0, 8) and [8, 16) of m become columns; m's columns [0, 16) are summed over.
__device__ inline Fragment right_operands_of_rows(const __nv_bfloat16* m, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return load_matrices(m + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}
// Two right operands of m: columns [0, 8) and [8, 16); its rows [0, 16) are summed over.
__device__ inline Fragment right_operands(const __nv_bfloat16* m, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return load_matrices_transposed(m + lane % 16 * stride + lane / 16 * 8);
}

// c (16 x 8 N) += a b^T: a's rows [0, 16), b's rows [0, 8 N), both `size` <= W wide, a multiple of 16.
template <int N, int W>
__device__ inline void multiply_rows(float (&c)[N][4], const __nv_bfloat16* a, const __nv_bfloat16* b, int size,
                                     int stride) {
#pragma unroll
  for (int k = 0; k < W; k += 16) {
    if (k >= size) break;
    const Fragment left = left_operand(a + k, stride);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      const Fragment right = right_operands_of_rows(b + n * 8 * stride + k, stride);
      multiply(c[n], left, right.r[0], right.r[1]);
      multiply(c[n + 1], left, right.r[2], right.r[3]);
    }
  }
}

// c (16 x 8 N) += a b: a the sums of 16 x 8 M rounded to bf16, b's rows [0, 8 M), `size` <= 8 N wide, a multiple of 16.
template <int M, int N>
__device__ inline void multiply_sums(float (&c)[N][4], const float (&a)[M][4], const __nv_bfloat16* b, int size,
                                     int stride) {
#pragma unroll
  for (int m = 0; m < M; m += 2) {
    const Fragment left{{pack(a[m][0], a[m][1]), pack(a[m][2], a[m][3]), pack(a[m + 1][0], a[m + 1][1]),
                         pack(a[m + 1][2], a[m + 1][3])}};
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      if (n * 8 >= size) break;
      const Fragment right = right_operands(b + m * 8 * stride + n * 8, stride);
      multiply(c[n], left, right.r[0], right.r[1]);
      multiply(c[n + 1], left, right.r[2], right.r[3]);
    }
  }
}

}  // namespace dstrain::cuda
