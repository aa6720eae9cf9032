#pragma once
// Two checkpoints, tensor by tensor, whatever their layouts.

#include <string>
#include <vector>

#include "lib/checkpoint/reader.h"

namespace dstrain {

struct TensorDifference {
  std::string name, role;
  std::string problem;       // only in one of them, or of another shape; else empty and the numbers count
  Index elements = 0;        // of the tensor
  Index different = 0;       // elements whose bits differ
  double largest = 0;        // largest absolute difference; infinite when NaN or infinity meets something else
  double largest_value = 0;  // largest finite magnitude in either
};

struct Comparison {
  std::vector<std::string> state;         // "step: 3 and 4"
  std::vector<TensorDifference> tensors;  // those that differ, by role and name
  Index compared = 0;                     // tensors in both
};

// State and tensors; the mesh and the sharding do not count. Reads tensors by rows, so memory stays small.
Comparison compare(Checkpoint& a, Checkpoint& b);

}  // namespace dstrain
