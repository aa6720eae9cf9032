#pragma once
// Whether all values are finite.

#include "kernels/op.h"

namespace dstrain {

// flag = 1 when x holds an infinity or a NaN, else it is left.
struct FiniteCheck {
  static constexpr const char* name = "finite_check";
  Tensor flag;  // (1) i32
  Tensor x;     // f32, bf16 or f64; any strides, the last 1

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {flag}; }
};
void run(Cpu, Stream& stream, const FiniteCheck& op);
void run(Cuda, Stream& stream, const FiniteCheck& op);

}  // namespace dstrain
