#pragma once
// How the CUDA norms cut rows: one block walks a chunk of them and keeps its part of the weights' gradients. Pure, so
// that a plan can count the workspace.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain::cuda {

inline Index norm_blocks(Index rows) { return std::min<Index>(rows, 528); }  // four a multiprocessor of an H100

inline std::size_t norm_partial_bytes(Index rows, Index columns, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(norm_blocks(rows) * columns * outputs) * sizeof(float)});
}

}  // namespace dstrain::cuda
