#pragma once
// Matrix products and the gradient of their bias. Storage f32 or bf16, each tensor on its own; sums in f32.

#include "kernels/op.h"

namespace dstrain {

// c = op(a) op(b) + bias, or c += op(a) op(b). c must not overlap a or b.
struct Matmul {
  static constexpr const char* name = "matmul";
  Tensor c;  // (m, n) strided rows
  Tensor a;  // (m, k), or (k, m) when transpose_a; strided rows
  Tensor b;  // (k, n), or (n, k) when transpose_b; strided rows
  bool transpose_a = false;
  bool transpose_b = false;
  Write write = Write::overwrite;
  Tensor bias = {};  // (n), added to every row; overwrite only

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {c}; }
  std::size_t workspace(Device target) const;

  Index m() const { return c.dim(0); }
  Index n() const { return c.dim(1); }
  Index k() const { return a.dim(transpose_a ? 0 : 1); }
};
void run(Cpu, Stream& stream, const Matmul& op);
void run(Cuda, Stream& stream, const Matmul& op);

// grad (+)= the sum over the rows of dy, in a fixed order.
struct BiasGradient {
  static constexpr const char* name = "bias_gradient";
  Tensor grad;  // (n) f32
  Tensor dy;    // (m, n) strided rows
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {grad}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const BiasGradient& op);
void run(Cuda, Stream& stream, const BiasGradient& op);

}  // namespace dstrain
