#pragma once
// 1 / (1 + exp(-x)) for a result stored as T.

#include "kernels/cuda/device/launch.cuh"

namespace dstrain::cuda {

// Within a few units of f32; where T is bf16 within (4 + 3 |x|) of them, which its own rounding hides: accurate
// exponentials and divisions there cost more than the memory does.
template <class T>
__device__ inline float sigmoid(float x) {
  if constexpr (sizeof(T) == 4)
    return 1.0f / (1.0f + expf(-x));
  else
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

}  // namespace dstrain::cuda
