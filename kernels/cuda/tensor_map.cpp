#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "lib/core/cuda/check.h"

namespace dstrain::cuda {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
             "cuTensorMapEncodeTiled");
  require(found != nullptr, ExitCode::device, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(found);
}

}  // namespace

CUtensorMap tensor_map(const TensorBoxes& of) {
  static const Encode encode = encoder();
  CUtensorMap map;
  cuuint64_t sizes[3], strides[2];
  cuuint32_t box[3], steps[] = {1, 1, 1};
  std::copy(of.sizes.begin(), of.sizes.end(), sizes);
  std::copy(of.strides.begin(), of.strides.end(), strides);
  std::copy(of.box.begin(), of.box.end(), box);
  const CUresult e =
      encode(&map, of.dtype == DType::f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
             const_cast<void*>(of.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(e == CUDA_SUCCESS, ExitCode::device, "cuTensorMapEncodeTiled of ({}, {}, {}), strides {} and {}: error {}",
          of.sizes[0], of.sizes[1], of.sizes[2], of.strides[0], of.strides[1], static_cast<int>(e));
  return map;
}

}  // namespace dstrain::cuda
