#pragma once
// The global gradient norm and the clip coefficient made of it, without the host.

#include "kernels/op.h"

namespace dstrain {

// result += the sum of squares of x, in blocks of kNormBlock elements, blocks in order, in float64.
struct SquaredNorm {
  static constexpr const char* name = "squared_norm";
  static constexpr Index kNormBlock = 65536;
  Tensor result;  // (1) f64
  Tensor x;       // (n) f32

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {result}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const SquaredNorm& op);
void run(Cuda, Stream& stream, const SquaredNorm& op);

// scalars[1] = min(1, max_norm / (sqrt(squared_norm) + 1e-6)), as torch's clip_grad_norm_; 1 when max_norm is 0; NaN
// when squared_norm is not finite.
struct ClipCoefficient {
  static constexpr const char* name = "clip_coefficient";
  Tensor scalars;       // (4) f32, as in AdamW
  Tensor squared_norm;  // (1) f64
  float max_norm = 0;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {scalars}; }
};
void run(Cpu, Stream& stream, const ClipCoefficient& op);
void run(Cuda, Stream& stream, const ClipCoefficient& op);

}  // namespace dstrain
