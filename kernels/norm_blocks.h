#pragma once
// How the CUDA norms cut rows: one block walks a chunk of them and keeps its part of the weights' gradients. Pure, so
// that a plan can count the workspace.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain::cuda {

// As many as an H100's 132 multiprocessors hold at once: 1024 threads each, 512 where a thread keeps 16 columns.
inline Index norm_blocks(Index rows, Index columns) {
  const Index threads = std::clamp<Index>((columns + 255) / 256 * 32, 32, 256);  // eight columns a thread
  const Index each = columns <= 2048 ? std::clamp<Index>(1024 / threads, 1, 16) : 2;
  return std::min<Index>(rows, 132 * each);
}

inline std::size_t norm_partial_bytes(Index rows, Index columns, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(norm_blocks(rows, columns) * columns * outputs) * sizeof(float)});
}

}  // namespace dstrain::cuda
