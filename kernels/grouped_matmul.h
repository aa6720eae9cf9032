#pragma once
// Products of consecutive groups of rows with a matrix of their own each: the experts' linears, one launch for all.
// Storage f32 or bf16, sums in f32. Group g has rows [offsets[g], offsets[g + 1]); it may have none.

#include "kernels/op.h"

namespace dstrain {

// c[p] = a[rows_of ? rows_of[p] : p] b_g, or b_g^T when transpose_b; the groups' matrices lie one below the other.
struct GroupedMatmul {
  static constexpr const char* name = "grouped_matmul";
  Tensor c;             // (P, n) strided rows
  Tensor a;             // (P, k), or (rows, k) with rows_of; strided rows
  Tensor b;             // (G * k, n), or (G * n, k) when transpose_b; c's and a's dtype
  Tensor offsets;       // (G + 1) i32, the last one P
  Tensor rows_of = {};  // (P) i32
  bool transpose_b = false;
  // (P, n / 2): SwiGLU of c = [gate | up], the bits of SwiGluForward (kernels/swiglu.h). REQUIRES: transpose_b.
  Tensor activated = {};

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {c, activated}; }
  std::size_t workspace(Device target) const;
  Index groups() const { return offsets.dim(0) - 1; }
};
void run(Cpu, Stream& stream, const GroupedMatmul& op);
void run(Cuda, Stream& stream, const GroupedMatmul& op);

// Of every group c_g (+)= sum over its rows p of a[p]^T b[p], rows of a or b taken through rows_of when given. A group
// without rows gives zeros.
struct GroupedGradient {
  static constexpr const char* name = "grouped_gradient";
  Tensor c;               // (G * m, n) f32, or bf16 when a is
  Tensor a;               // (P, m) or (rows, m); strided rows
  Tensor b;               // (P, n) or (rows, n); strided rows; a's dtype
  Tensor offsets;         // (G + 1) i32, the last one P
  Tensor a_rows_of = {};  // (P) i32
  Tensor b_rows_of = {};  // (P) i32
  Index rows = 0;         // P
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {c}; }
  std::size_t workspace(Device target) const;
  Index groups() const { return offsets.dim(0) - 1; }
};
void run(Cpu, Stream& stream, const GroupedGradient& op);
void run(Cuda, Stream& stream, const GroupedGradient& op);

}  // namespace dstrain
