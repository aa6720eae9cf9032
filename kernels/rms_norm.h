#pragma once
// Root mean square norm (Zhang & Sennrich 2019) with the residual sum fused. Rows may be strided in every (rows, C).

#include "kernels/op.h"

namespace dstrain {

// sum = x + branch; y = round(sum * rstd) * weight, rstd = 1 / sqrt(mean(sum^2) + eps), as Hugging Face's LlamaRMSNorm:
// rounded to the storage type, then scaled.
// A row whose squares are beyond float32 becomes NaN.
struct RmsNormForward {
  static constexpr const char* name = "rms_norm";
  Tensor y;            // (rows, C)
  Tensor rstd;         // (rows) f32, kept for backward
  Tensor sum = {};     // (rows, C), written when branch is given; may be the same memory as x or branch
  Tensor x;            // (rows, C)
  Tensor branch = {};  // (rows, C)
  Tensor weight;       // (C)
  float eps = 1e-6f;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 3> outputs() const { return {y, rstd, sum}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const RmsNormForward& op);
void run(Cuda, Stream& stream, const RmsNormForward& op);

// dx = dresidual + d(rms_norm)/dx; dweight (+)= the sum over the rows, in a fixed order.
struct RmsNormBackward {
  static constexpr const char* name = "rms_norm_backward";
  Tensor dx;              // (rows, C), may be the same memory as dy or dresidual
  Tensor dweight;         // (C) f32
  Tensor dy;              // (rows, C)
  Tensor x;               // (rows, C), what was normalised: forward's sum when there was a branch
  Tensor rstd;            // (rows) f32
  Tensor weight;          // (C)
  Tensor dresidual = {};  // (rows, C)
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {dx, dweight}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const RmsNormBackward& op);
void run(Cuda, Stream& stream, const RmsNormBackward& op);

}  // namespace dstrain
