#pragma once
// What lies between a router and the grouped matmuls of its experts. Choice c = row * K + k; place and choice_at are
// ExpertOrder's.

#include "kernels/op.h"

namespace dstrain {

// y[i] = x[rows_of[i]], whatever the dtype.
struct TakeRows {
  static constexpr const char* name = "take_rows";
  Tensor y;        // (P, C) strided rows
  Tensor x;        // (rows, C) strided rows; y's dtype
  Tensor rows_of;  // (P) i32

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const TakeRows& op);
void run(Cuda, Stream& stream, const TakeRows& op);

// y[row] = start[row] + the sum over k, in order, in f32, of weights[row, k] * x[place[row, k]]; -1: not that k.
struct ExpertSum {
  static constexpr const char* name = "expert_sum";
  Tensor y;             // (rows, C) strided rows; may be start
  Tensor x;             // (P, C)
  Tensor place;         // (rows, K) i32
  Tensor weights = {};  // (rows, K) f32; undefined: all 1
  Tensor start = {};    // (rows, C) strided rows; undefined: 0

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const ExpertSum& op);
void run(Cuda, Stream& stream, const ExpertSum& op);

// The gradient of weight * down(swiglu(gate_up)) as far as what does not need the experts' outputs (arXiv 2512.14080):
// with d[p] = the output's gradient times down (not weighted), a = swiglu(gate_up) and w = weights[choice_at[p]]:
//   dweights[choice_at[p]] = <d[p], a[p]>;  dgate_up[p] = swiglu'(gate_up[p]) (w d[p]);  weighted[p] = w a[p].
struct ExpertActivationGradient {
  static constexpr const char* name = "expert_activation_gradient";
  Tensor dgate_up;   // (P, 2F); may be gate_up
  Tensor weighted;   // (P, F); may be d
  Tensor dweights;   // (rows, K) f32; choices that lie nowhere are left
  Tensor d;          // (P, F); P <= rows * K
  Tensor gate_up;    // (P, 2F) = [gate | up]
  Tensor weights;    // (rows, K) f32
  Tensor choice_at;  // (P) i32

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 3> outputs() const { return {dgate_up, weighted, dweights}; }
};
void run(Cpu, Stream& stream, const ExpertActivationGradient& op);
void run(Cuda, Stream& stream, const ExpertActivationGradient& op);

}  // namespace dstrain
