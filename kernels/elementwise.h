#pragma once
// Sums, conversions and moves. Contiguous tensors of one shape, of any rank, but for Copy.

#include "kernels/op.h"

namespace dstrain {

// y = a + b, all of one dtype; y may be a or b.
struct Add {
  static constexpr const char* name = "add";
  Tensor y, a, b;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Add& op);
void run(Cuda, Stream& stream, const Add& op);

// y = x, between f32 and bf16, rounded to nearest even. No overlap.
struct Cast {
  static constexpr const char* name = "cast";
  Tensor y, x;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Cast& op);
void run(Cuda, Stream& stream, const Cast& op);

// Every element of y, f32, bf16 or f64, becomes value.
struct Fill {
  static constexpr const char* name = "fill";
  Tensor y;
  float value = 0;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Fill& op);
void run(Cuda, Stream& stream, const Fill& op);

// y = x: same shape and dtype (any), any strides, the last one's too. No overlap.
struct Copy {
  static constexpr const char* name = "copy";
  Tensor y, x;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Copy& op);
void run(Cuda, Stream& stream, const Copy& op);

}  // namespace dstrain
