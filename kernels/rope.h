#pragma once
// Rotary position embedding (Su et al. 2021) in the rotate_half form of Hugging Face's Llama.

#include "kernels/op.h"

namespace dstrain {

// The pair (i, i + D/2) of every head is rotated by positions * inverse_frequencies[i]. Angle, sine and cosine are
// those of the f32 product, as in Hugging Face.
struct Rope {
  static constexpr const char* name = "rope";
  Tensor y;                    // (rows, H, D) strided; may be x
  Tensor x;                    // (rows, H, D) strided
  Tensor positions;            // (rows) i32
  Tensor inverse_frequencies;  // (D/2) f32
  bool backward = false;       // the inverse rotation

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Rope& op);
void run(Cuda, Stream& stream, const Rope& op);

}  // namespace dstrain
