#pragma once
// Tensor maps: what bulk copies (TMA) between memory and swizzled shared memory are described by.

#include <cuda.h>

#include <array>

#include "kernels/op.h"

namespace dstrain::cuda {

// Boxes of `box` elements of an array in memory, fastest axis first; a box row is at most 128 bytes, which are swizzled
// as wgmma wants them. What lies outside of `sizes` is read as zero and not written. REQUIRE: data and strides are
// multiples of 16 bytes. Throws Error{device}.
struct TensorBoxes {
  DType dtype = DType::bf16;  // or f32
  const void* data = nullptr;
  std::array<Index, 3> sizes{1, 1, 1};
  std::array<Index, 2> strides{0, 0};  // bytes, of the second and third axis
  std::array<int, 3> box{1, 1, 1};
};
CUtensorMap tensor_map(const TensorBoxes& of);

}  // namespace dstrain::cuda
