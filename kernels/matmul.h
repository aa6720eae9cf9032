#pragma once
// Matrix products and the gradient of their bias. Storage f32 or bf16, each tensor on its own; sums in f32.

#include "kernels/op.h"

namespace dstrain {

// What a Matmul does with its product; gelu_tanh is GeluForward's tanh form.
enum class Epilogue : unsigned char {
  none,
  gelu,           // pre = op(a) op(b) + bias, c = gelu_tanh(pre)
  gelu_gradient,  // c = (op(a) op(b)) * gelu_tanh'(pre)
};

// c = op(a) op(b) + bias, or c += op(a) op(b). c must not overlap a, b or pre.
struct Matmul {
  static constexpr const char* name = "matmul";
  Tensor c;  // (m, n) strided rows
  Tensor a;  // (m, k), or (k, m) when transpose_a; strided rows
  Tensor b;  // (k, n), or (n, k) when transpose_b; strided rows
  bool transpose_a = false;
  bool transpose_b = false;
  Write write = Write::overwrite;
  Tensor bias = {};                    // (n), added to every row; overwrite only
  Epilogue epilogue = Epilogue::none;  // others: overwrite only
  Tensor pre = {};                     // (m, n) strided rows, c's dtype: written by gelu, read by gelu_gradient

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {c, epilogue == Epilogue::gelu ? pre : Tensor{}}; }
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
