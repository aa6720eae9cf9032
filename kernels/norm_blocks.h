#pragma once
// How the CUDA norms cut rows: one block walks a chunk of them and keeps its part of the weights' gradients. Pure, so
// that a plan can count the workspace.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain::cuda {

// As many as an H100's 132 multiprocessors hold at once: 512 threads each, of 16 columns.
inline Index norm_blocks(Index rows, Index columns) {
  const Index threads = std::clamp<Index>((columns + 511) / 512 * 32, 32, 256);
  return std::min<Index>(rows, 132 * (512 / threads));
}

inline std::size_t norm_partial_bytes(Index rows, Index columns, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(norm_blocks(rows, columns) * columns * outputs) * sizeof(float)});
}

}  // namespace dstrain::cuda
