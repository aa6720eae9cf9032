#pragma once
// The global gradient norm and the clip coefficient made of it, without the host.

#include "kernels/op.h"

namespace dstrain {

// result += the sum of squares of x, in blocks of kNormBlock elements, blocks in order, in float64.
struct SquaredNorm {
  static constexpr const char* name = "squared_norm";
  static constexpr Index kNormBlock = 65536;
  Tensor result;  // (1) f64
  Tensor x;       // (n) f32 or bf16

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {result}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const SquaredNorm& op);
void run(Cuda, Stream& stream, const SquaredNorm& op);

// The numbers of an update, made where they are used.
//   finite: bad is 0, |loss| <= 2^60, 0 <= squared_norm <= 2^120: what float32 moments can hold
//   within: squared_norm <= limits[0] and loss <= limits[1]
//   good:   finite, within and not halted
//   good:   state[0] += 1; scalars[1] = min(1, max_norm / (sqrt(squared_norm) + 1e-6)), as torch's clip_grad_norm_, 1
//           when max_norm is 0; scalars[2], [3] = 1 - beta^state[0] in double;
//   else:   scalars[1] = NaN, so that AdamW does nothing; if `halt` and not finite, or `halt_beyond` and not within,
//           state[1] = 1 and nothing is good any more.
constexpr double kMostLoss = 0x1p60, kMostSquaredNorm = 0x1p120;
struct UpdateScalars {
  static constexpr const char* name = "update_scalars";
  Tensor scalars;       // (4) f32, as in AdamW; the first is left
  Tensor state;         // (2) i64: updates applied, whether halted
  Tensor squared_norm;  // (1) f64
  Tensor loss;          // (1) f64
  Tensor bad;           // (1) f64: not 0 when a weight is not finite
  Tensor limits;        // (2) f64, of squared_norm and loss; infinite: none
  float max_norm = 0;
  double beta1 = 0.9, beta2 = 0.95;
  bool halt = false, halt_beyond = false;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {scalars, state}; }
};
void run(Cpu, Stream& stream, const UpdateScalars& op);
void run(Cuda, Stream& stream, const UpdateScalars& op);

}  // namespace dstrain
