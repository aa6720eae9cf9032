#pragma once
// The BLAS under the CPU matmuls, run on one thread: parallelism is ours.

#include <string>

#include "lib/core/shape.h"

namespace dstrain::cpu {

// c (m, n) = alpha op(a) op(b) + beta c, row-major; lda, ldb, ldc are row strides. Any size may be zero. beta 0
// overwrites c whatever it holds. May be called from several threads at once.
void sgemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, float alpha, const float* a, Index lda,
           const float* b, Index ldb, float beta, float* c, Index ldc);

struct BlasInfo {
  std::string name;    // as the library describes itself: "OpenBLAS 0.3.21 ..."
  std::string kernel;  // the kernel set that it detected: "SkylakeX"
  std::string wanted;  // what is best for this processor when `kernel` is slower than that, else empty
};
BlasInfo blas_info();
// Whether BLAS runs a kernel set for a lesser processor than this one.
inline bool slow_kernel() { return !blas_info().wanted.empty(); }

}  // namespace dstrain::cpu
