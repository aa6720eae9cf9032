#pragma once
// Layer norm (Ba et al. 2016) with the residual sum fused. Rows may be strided in every (rows, C).

#include "kernels/op.h"

namespace dstrain {

// sum = x + branch; y = (sum - mean) * rstd * weight + bias, rstd = 1 / sqrt(mean((sum - mean)^2) + eps).
// A row whose squares are beyond float32 becomes NaN.
struct LayerNormForward {
  static constexpr const char* name = "layer_norm";
  Tensor y;            // (rows, C)
  Tensor mean;         // (rows) f32, kept for backward
  Tensor rstd;         // (rows) f32, kept for backward
  Tensor sum = {};     // (rows, C), written when branch is given; may be the same memory as x or branch
  Tensor x;            // (rows, C)
  Tensor branch = {};  // (rows, C)
  Tensor weight;       // (C)
  Tensor bias;         // (C)
  float eps = 1e-5f;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 4> outputs() const { return {y, mean, rstd, sum}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const LayerNormForward& op);
void run(Cuda, Stream& stream, const LayerNormForward& op);

// dx = dresidual + d(layer_norm)/dx; dweight, dbias (+)= sums over the rows, in a fixed order.
struct LayerNormBackward {
  static constexpr const char* name = "layer_norm_backward";
  Tensor dx;              // (rows, C), may be the same memory as dy or dresidual
  Tensor dweight;         // (C) f32
  Tensor dbias;           // (C) f32
  Tensor dy;              // (rows, C)
  Tensor x;               // (rows, C), what was normalised: forward's sum when there was a branch
  Tensor mean;            // (rows) f32
  Tensor rstd;            // (rows) f32
  Tensor weight;          // (C)
  Tensor dresidual = {};  // (rows, C)
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 3> outputs() const { return {dx, dweight, dbias}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const LayerNormBackward& op);
void run(Cuda, Stream& stream, const LayerNormBackward& op);

}  // namespace dstrain
