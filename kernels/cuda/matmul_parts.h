#pragma once
// How the CUDA matmul cuts up an op whose dtypes no cuBLASLt call takes at once. Pure: `plan` counts its workspace.

#include "kernels/matmul.h"

namespace dstrain::cuda {

constexpr std::size_t kMatmulWorkspace = std::size_t{32} << 20;  // cuBLASLt's own
constexpr Index kWidenedPad = 4;  // rows of an f32 copy start at multiples of as many elements

struct MatmulParts {
  bool widen_a, widen_b;  // a bf16 operand beside an f32 one is copied to f32
  bool widen_bias;        // so is a bf16 bias of an f32 c
  bool apart;             // the product is made in f32 in the workspace; c takes bias, its old value and one rounding
};

inline MatmulParts matmul_parts(const Matmul& op) {
  const bool half_a = op.a.dtype == DType::bf16, half_b = op.b.dtype == DType::bf16;
  const bool half_c = op.c.dtype == DType::bf16, bias = op.bias.defined();
  MatmulParts parts{};
  parts.widen_a = half_a && !half_b;
  parts.widen_b = half_b && !half_a;
  // cuBLASLt rounds a bf16 product before it adds what c held.
  parts.apart =
      half_c && (!half_a || !half_b || (bias && op.bias.dtype == DType::f32) || op.write == Write::accumulate);
  parts.widen_bias = bias && !half_c && op.bias.dtype == DType::bf16;
  return parts;
}

inline Index widened_stride(Index columns) { return (columns + kWidenedPad - 1) / kWidenedPad * kWidenedPad; }
inline std::size_t widened_bytes(const Tensor& t) {
  return static_cast<std::size_t>(t.rows() * widened_stride(t.dim(-1))) * sizeof(float);
}

}  // namespace dstrain::cuda
