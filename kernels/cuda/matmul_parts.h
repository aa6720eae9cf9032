#pragma once
// How the CUDA matmul cuts up an op whose dtypes no cuBLASLt call takes at once. Pure: `plan` counts its workspace.

#include "kernels/matmul.h"

namespace dstrain::cuda {

constexpr std::size_t kMatmulWorkspace = std::size_t{32} << 20;  // cuBLASLt's own
constexpr Index kTerms = 3;    // of bf16 that add up to a float: three times eight bits of its 24
constexpr Index kTermPad = 8;  // rows of terms start at multiples of as many elements

struct MatmulParts {
  bool cut_a,
      cut_b;        // an f32 operand beside a bf16 one is cut into its terms, whose products tensor cores make exactly;
  bool along_sum;   // terms stand along the sum, with the other operand as often; else along the result, then added
  bool widen_bias;  // a bf16 bias of an f32 c is copied to f32
  bool apart;       // the product is made in f32 in the workspace; c takes bias, its old value and one rounding
};

inline MatmulParts matmul_parts(const Matmul& op) {
  const bool half_a = op.a.dtype == DType::bf16, half_b = op.b.dtype == DType::bf16;
  const bool half_c = op.c.dtype == DType::bf16, bias = op.bias.defined();
  MatmulParts parts{};
  parts.cut_a = half_b && !half_a;
  parts.cut_b = half_a && !half_b;
  const bool cut = parts.cut_a || parts.cut_b;
  parts.along_sum = cut && (parts.cut_a ? op.b : op.a).numel() <= op.c.numel();
  // cuBLASLt rounds a bf16 product before it adds what c held.
  parts.apart =
      (cut && !parts.along_sum) ||
      (half_c && (!half_a || !half_b || (bias && op.bias.dtype == DType::f32) || op.write == Write::accumulate));
  parts.widen_bias = bias && !half_c && !parts.apart && op.bias.dtype == DType::bf16;
  return parts;
}

// Of an operand: whether the sum runs over its rows.
inline bool sum_over_rows(const Matmul& op, bool of_a) { return of_a ? op.transpose_a : !op.transpose_b; }

// An operand's terms, or itself as often, one below the other or side by side.
struct Stacked {
  bool below;
  Index rows, columns, stride;
  std::size_t bytes() const { return static_cast<std::size_t>(rows * stride) * sizeof(std::uint16_t); }
};
inline Stacked stacked(const Matmul& op, bool of_a, const MatmulParts& parts) {
  const Tensor& t = of_a ? op.a : op.b;
  const bool below = sum_over_rows(op, of_a) == parts.along_sum;
  const Index columns = t.dim(1) * (below ? 1 : kTerms);
  return {below, t.dim(0) * (below ? kTerms : 1), columns, (columns + kTermPad - 1) / kTermPad * kTermPad};
}
// Whether an operand is not read where it lies.
inline bool stacks(const MatmulParts& parts, bool of_a) {
  return (of_a ? parts.cut_a : parts.cut_b) || (parts.along_sum && (of_a ? parts.cut_b : parts.cut_a));
}

// What is made apart: (m, n) of each term's product, one below the other or side by side where it is the terms of b.
inline Shape product_shape(const Matmul& op, const MatmulParts& parts) {
  const Index terms = (parts.cut_a || parts.cut_b) && !parts.along_sum ? kTerms : 1;
  return {op.m() * (parts.cut_b ? 1 : terms), op.n() * (parts.cut_b ? terms : 1)};
}

}  // namespace dstrain::cuda
