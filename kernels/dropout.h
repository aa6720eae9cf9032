#pragma once
// Dropout (Srivastava et al. 2014) whose bits depend on what an element is, not on where it is computed.

#include "kernels/op.h"
#include "lib/core/rng.h"

namespace dstrain {

// y = x * keep / (1 - p), also its own backward. With e = position * columns + first_column + c, element c of a row is
// kept when uniform(key(stream = sample, index = e / 4)[e % 4]) >= p.
struct Dropout {
  static constexpr const char* name = "dropout";
  Tensor y;           // (rows, C) strided rows; may be x
  Tensor x;           // (rows, C) strided rows
  Tensor sample_ids;  // (rows) i64
  Tensor positions;   // (rows) i32
  Philox key{};
  float p = 0;
  Index first_column = 0;
  Index columns = 0;  // width over all ranks; 0: C

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const Dropout& op);
void run(Cuda, Stream& stream, const Dropout& op);

}  // namespace dstrain
