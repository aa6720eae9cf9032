#pragma once
// How the CUDA norms cut rows: one block walks a chunk of them and keeps its part of the weights' gradients. Pure, so
// that a plan can count the workspace.

#include <algorithm>

#include "kernels/check.h"

namespace dstrain::cuda {

// As many as an H100's 132 multiprocessors hold at once: 768 threads each, of a vector of 16 bytes, or 512 of two.
inline Index norm_blocks(const Tensor& x) {
  const Index vectors = (x.dim(1) * static_cast<Index>(size_of(x.dtype)) + 15) / 16, each = vectors > 256 ? 2 : 1;
  const Index threads = std::clamp<Index>((vectors + 32 * each - 1) / (32 * each) * 32, 32, 256);
  return std::min<Index>(x.dim(0), 132 * ((each == 1 ? 768 : 512) / threads));
}

inline std::size_t norm_partial_bytes(const Tensor& x, Index outputs) {
  return arena_bytes({static_cast<std::size_t>(norm_blocks(x) * x.dim(1) * outputs) * sizeof(float)});
}

}  // namespace dstrain::cuda
