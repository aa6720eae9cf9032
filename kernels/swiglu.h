#pragma once
// SwiGLU (Shazeer 2020) over merged gate and up projections.

#include "kernels/op.h"

namespace dstrain {

// y = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
struct SwiGluForward {
  static constexpr const char* name = "swiglu";
  Tensor y;        // (rows, F) strided rows
  Tensor gate_up;  // (rows, 2F) = [gate | up], strided rows

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const SwiGluForward& op);
void run(Cuda, Stream& stream, const SwiGluForward& op);

struct SwiGluBackward {
  static constexpr const char* name = "swiglu_backward";
  Tensor dgate_up;  // (rows, 2F) strided rows, may be the same memory as gate_up
  Tensor dy;        // (rows, F) strided rows
  Tensor gate_up;   // (rows, 2F) strided rows

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {dgate_up}; }
};
void run(Cpu, Stream& stream, const SwiGluBackward& op);
void run(Cuda, Stream& stream, const SwiGluBackward& op);

}  // namespace dstrain
