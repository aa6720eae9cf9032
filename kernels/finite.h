#pragma once
// Whether all values are finite, and no larger than they may be.

#include <limits>

#include "kernels/op.h"

namespace dstrain {

// flag = 1 when x holds a NaN, an infinity or a value beyond +-most, else it is left.
struct FiniteCheck {
  static constexpr const char* name = "finite_check";
  Tensor flag;                                          // (1) i32 or f64
  Tensor x;                                             // f32, bf16 or f64; any strides, the last 1
  float most = std::numeric_limits<float>::infinity();  // REQUIRES: > 0; infinity: no such bound

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {flag}; }
};
void run(Cpu, Stream& stream, const FiniteCheck& op);
void run(Cuda, Stream& stream, const FiniteCheck& op);

}  // namespace dstrain
