#pragma once
// GELU (Hendrycks & Gimpel 2016): x Phi(x), or its tanh approximation (Hugging Face's gelu_new).

#include "kernels/op.h"

namespace dstrain {

// tanh: y = x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); else y = x / 2 (1 + erf(x / sqrt(2))).
struct GeluForward {
  static constexpr const char* name = "gelu";
  Tensor y;  // (rows, C) strided rows, may be x
  Tensor x;  // (rows, C) strided rows
  bool tanh = true;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const GeluForward& op);
void run(Cuda, Stream& stream, const GeluForward& op);

struct GeluBackward {
  static constexpr const char* name = "gelu_backward";
  Tensor dx;  // (rows, C) strided rows, may be the same memory as dy or x
  Tensor dy;  // (rows, C) strided rows
  Tensor x;   // (rows, C) strided rows
  bool tanh = true;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {dx}; }
};
void run(Cpu, Stream& stream, const GeluBackward& op);
void run(Cuda, Stream& stream, const GeluBackward& op);

}  // namespace dstrain
