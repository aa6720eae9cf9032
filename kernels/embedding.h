#pragma once
// Table lookup, over a slice of the rows of a vocabulary.

#include "kernels/op.h"

namespace dstrain {

// y = table[tokens - first_row]; ids outside [first_row, first_row + V) give zero rows (accumulate: add nothing).
struct EmbeddingForward {
  static constexpr const char* name = "embedding";
  Tensor y;       // (rows, C) strided rows
  Tensor tokens;  // (rows) i32
  Tensor table;   // (V, C) strided rows
  Index first_row = 0;
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {y}; }
};
void run(Cpu, Stream& stream, const EmbeddingForward& op);
void run(Cuda, Stream& stream, const EmbeddingForward& op);

// dtable[tokens - first_row] += dy, rows in ascending order; overwrite sets every other element to zero. Ids outside
// are skipped, and so is the id `frozen`.
struct EmbeddingBackward {
  static constexpr const char* name = "embedding_backward";
  Tensor dtable;  // (V, C) f32 strided rows
  Tensor dy;      // (rows, C) strided rows
  Tensor tokens;  // (rows) i32
  Index first_row = 0;
  Index frozen = -1;
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {dtable}; }
};
void run(Cpu, Stream& stream, const EmbeddingBackward& op);
void run(Cuda, Stream& stream, const EmbeddingBackward& op);

}  // namespace dstrain
