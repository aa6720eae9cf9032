#pragma once
// CUDA's errors as ours. For lib/core/cuda, kernels/cuda and lib/comm's NCCL group.

#include <cuda_runtime_api.h>

#include "lib/core/errors.h"

namespace dstrain {

// Throws Error{device} naming the call and CUDA's own words, unless `e` is success.
inline void cuda_check(cudaError_t e, const char* call) {
  if (e != cudaSuccess) [[unlikely]]
    fail(ExitCode::device, "{}: {} ({})", call, cudaGetErrorString(e), cudaGetErrorName(e));
}

}  // namespace dstrain
