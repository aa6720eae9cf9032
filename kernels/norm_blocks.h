#pragma once
// How the CUDA norms cut rows: one block walks a chunk of them and keeps its part of the weights' gradients. Pure, so
// that a plan can count the workspace.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain::cuda {

// Four a multiprocessor of an H100, more for short rows.
inline Index norm_blocks(Index rows, Index columns) {
  const Index threads = std::clamp<Index>((columns + 255) / 256 * 32, 32, 256);  // eight columns a thread
  return std::min<Index>(rows, 132 * std::clamp<Index>(1024 / threads, 4, 16));
}

inline std::size_t norm_partial_bytes(Index rows, Index columns, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(norm_blocks(rows, columns) * columns * outputs) * sizeof(float)});
}

}  // namespace dstrain::cuda
