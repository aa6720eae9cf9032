#pragma once
// TensorSlab: a rectangular part of a named tensor in host memory. What checkpoints are made of.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

struct TensorSlab {
  std::string name;         // Hugging Face's
  std::string role;         // weight, exp_avg, exp_avg_sq
  Shape global;             // of the whole tensor; one or two dimensions
  Shape offset, extent;     // this part of it
  bool transposed = false;  // memory holds (extent[1], extent[0])
  float* data = nullptr;    // borrowed; saving only reads it
  Index row_stride = 0;     // elements between rows in memory; at least the row's length. Unused for vectors
  // Instead of `data`, for saving what is in no memory: writes rows [first, first + rows) to `to`, one after another.
  std::function<void(Index first, Index rows, float* to)> make = {};

  // The shape of the memory.
  Index rows() const { return extent.rank() == 1 ? 1 : extent[transposed ? 1 : 0]; }
  Index columns() const { return extent.rank() == 1 ? extent[0] : extent[transposed ? 0 : 1]; }
  // Throws Error{bug} naming the tensor when the part is not inside it.
  void validate() const;
};

// Which of `replicas` ranks that all hold the same slabs writes which: slab i goes to the replica that has the fewest
// bytes so far, the first of equals. Pure: every replica computes the same list.
std::vector<int> assign_writers(std::span<const Index> bytes, int replicas);

}  // namespace dstrain
